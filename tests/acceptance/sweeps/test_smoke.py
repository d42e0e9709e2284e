"""The smoke size of every experiment there is: a run of each method of its sweep, in seconds, on tiny data."""

from __future__ import annotations

from pathlib import Path

import pytest

from clipbench.cli.compose import CONFIG_PATH, compose, compose_node
from clipbench.config.schema import is_study
from clipbench.runs.execute import execute
from clipbench.tuning.plan import swept_methods
from tests.data.files import cifar10_files, cifar100_files
from tests.runs.helpers import values

EXPERIMENTS = sorted(
    str(path.relative_to(Path(CONFIG_PATH, "experiment")).with_suffix(""))
    for path in Path(CONFIG_PATH, "experiment").rglob("smoke.yaml")
)
# The same data and model as another experiment, under another optimizer, accumulation or more methods.
REPEATED = {
    "gpt2_fineweb_adam", "gpt2_fineweb_sgd", "leaderboard_cifar100", "leaderboard_gpt", "leaderboard_pareto",
    "mlp_pareto_adam", "ps_clip_accumulation_8x64", "shakespeare_adam", "shakespeare_sgd",
}  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small files in the official formats for everything that is not generated."""
    root = tmp_path_factory.mktemp("data")
    cifar100_files(root, train=240, test=60)
    cifar10_files(root, each=60)
    (root / "shakespeare").mkdir()
    (root / "shakespeare" / "input.txt").write_text("To be, or not to be: that is the question.\n" * 400)
    (root / "fineweb").mkdir()
    (root / "fineweb" / "text.txt").write_text("To be, or not to be: that is the question.\n" * 400)
    return root


def test_there_are_experiments() -> None:
    assert "ps_clip_alexnet_cifar100/smoke" in EXPERIMENTS
    assert {f"{name}/smoke" for name in REPEATED} < set(EXPERIMENTS)


@pytest.mark.parametrize(
    "experiment",
    [e if e.partition("/")[0] not in REPEATED else pytest.param(e, marks=pytest.mark.slow) for e in EXPERIMENTS],
)
def test_the_smoke_size_runs(experiment: str, data: Path, tmp_path: Path) -> None:
    common = [f"experiment={experiment}", "device=cpu", f"paths.results={tmp_path}"]
    common += [f"data.root={data}", "data.verify=false", "data.download=false"]
    study = is_study(compose(common))
    for method in ["sgd"] if study else swept_methods(compose_node(common)):
        outcome = execute(compose([*common, f"method={method}"]), say=lambda line: None)
        assert outcome.status == "ok", method
        assert outcome.info["experiment"] == experiment
        splits = {"study"} if study else {"train", "validation", "test"}
        assert {row[3] for row in values(outcome.folder)} == splits
