"""Every YAML of dataset, model, optimizer, schedule and noise lists what its target takes, and builds it."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import hydra.utils
import pytest
from omegaconf import OmegaConf

from clipbench.config import schema
from clipbench.config.build import instantiate
from clipbench.data import Spec
from clipbench.models import MLP, Airbench

CONF = Path(__file__).parents[2] / "conf"
FILES = [
    path
    for group in ("dataset", "model", "optimizer", "schedule", "noise")
    for path in sorted((CONF / group).glob("*.yaml"))
]
SPECS = {
    "mlp": Spec("vector", (20,), 1, "heavy_tailed"),
    "transformer": Spec("tokens", (256,), 65, "shakespeare_char"),
    "gpt2": Spec("tokens", (8,), 256, "fineweb"),
}
IMAGES = Spec("image", (3, 32, 32), 100, "cifar100")


def node_of(path: Path) -> dict[str, Any]:
    content: Any = OmegaConf.to_container(OmegaConf.load(path))
    return content["dataset"] if path.parent.name == "dataset" else content


def ids(path: Path) -> str:
    return f"{path.parent.name}/{path.stem}"


@pytest.mark.parametrize("path", FILES, ids=ids)
def test_the_file_builds_its_target(path: Path) -> None:
    node = node_of(path)
    assert node["name"] == path.stem
    schema.check_target(node, path.parent.name)
    if "_target_" in node:
        spec = SPECS.get(path.stem, IMAGES)
        trained = Airbench(IMAGES, widths=[2, 2, 2]) if path.stem == "airbench" else MLP(SPECS["mlp"], widths=[4])
        built = instantiate(node, path.parent.name, spec=spec, model=trained)
        if path.parent.name == "dataset":
            assert built.spec.name == path.stem


@pytest.mark.parametrize("path", [path for path in FILES if "_target_" in node_of(path)], ids=ids)
def test_the_file_lists_every_option(path: Path) -> None:
    node = node_of(path)
    given = {"spec", "model"}  # by the run
    assert (
        set(node) - {"name", "_target_"}
        == set(inspect.signature(hydra.utils.get_object(node["_target_"])).parameters) - given
    )


def test_each_dataset_picks_a_model_that_fits() -> None:
    fitting = {}
    for path in FILES:
        if path.parent.name == "dataset":
            (default,) = OmegaConf.to_container(OmegaConf.load(path))["defaults"]  # type: ignore[index, call-overload]
            choice = default["override /model"]
            dataset = instantiate(node_of(path), "dataset")
            model = instantiate(node_of(CONF / "model" / f"{choice}.yaml"), "model", spec=dataset.spec)
            fitting[path.stem] = any(dataset.spec.outputs in parameter.shape for parameter in model.parameters())
    assert len(fitting) >= 5
    assert all(fitting.values()), "some layer has one output a class or token"
