"""Whose code a config may name, and that what is built fits its place."""

from __future__ import annotations

import sys
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest

from clipbench.clipping import NoClip, NormClip
from clipbench.config import trust
from clipbench.config.build import instantiate
from clipbench.config.targets import check_target
from clipbench.errors import ConfigError

STRANGER = """
import pathlib
pathlib.Path(__file__).with_name("imported").touch()
from clipbench.clipping import NoClip
class Mine(NoClip):
    pass
def number(size: int = 1):
    return size
"""


@pytest.fixture
def stranger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The mark that a package of a stranger leaves when it is imported; `stranger.Mine` is a clipper."""
    (tmp_path / "stranger").mkdir()
    (tmp_path / "stranger" / "__init__.py").write_text(STRANGER)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "stranger", raising=False)
    return tmp_path / "stranger" / "imported"


def refused(node: dict[str, Any], path: str = "method.clipper") -> str:
    with pytest.raises(ConfigError) as checked:
        check_target(node, path)
    with pytest.raises(ConfigError):
        instantiate(node, path)
    assert len(str(checked.value).splitlines()) == 1
    return str(checked.value)


@pytest.mark.parametrize("name", ["subprocess.Popen", "os.system", "builtins.exec", "clipbenchmark.X", "torch.load", 5])
def test_code_of_others_is_refused(name: Any) -> None:
    assert refused({"_target_": name}).startswith("method.clipper._target_ must be")


def test_code_of_others_is_not_even_imported(stranger: Path) -> None:
    line = refused({"_target_": "stranger.Mine"})
    assert "--allow PACKAGE, got stranger.Mine" in line
    assert not stranger.exists()
    assert "stranger" not in sys.modules


def test_an_allowed_package_is_used(stranger: Path) -> None:
    trust.allow(["stranger"])
    built = instantiate({"_target_": "stranger.Mine"}, "method.clipper")
    assert isinstance(built, NoClip)
    assert stranger.exists()


@pytest.mark.parametrize(
    "word",
    [
        "method.clipper._target_=stranger.Mine",
        "method.clipper._target_='stranger.Mine',clipbench.clipping.NoClip",
        "method.clipper={_target_: stranger.Mine, size: 3}",
    ],
)
def test_a_typed_name_is_allowed_and_no_other(word: str, stranger: Path) -> None:
    trust.allow_typed([word, "size=3"])
    assert isinstance(instantiate({"_target_": "stranger.Mine"}, "method.clipper"), NoClip)
    assert "--allow" in refused({"_target_": "stranger.number"})


def test_a_package_with_an_entry_point_is_allowed(stranger: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    point = EntryPoint("mine", "stranger.conf", "clipbench.methods")
    monkeypatch.setattr(trust, "plugins", lambda: (point,))
    assert isinstance(instantiate({"_target_": "stranger.Mine"}, "method.clipper"), NoClip)


@pytest.mark.parametrize("name", ["", "a b", "../x", "a-b", "os;"])
def test_allow_wants_a_name(name: str) -> None:
    with pytest.raises(ConfigError, match="--allow must be the name of a package"):
        trust.allow([name])


def test_what_our_modules_import_is_not_ours() -> None:
    assert "must be defined in clipbench" in refused({"_target_": "clipbench.cli.command.os.system"})
    assert "must be defined in clipbench" in refused({"_target_": "clipbench.training.setup.torch.load"})


@pytest.mark.parametrize(
    ("node", "path", "wanted"),
    [
        ({"_target_": "clipbench.models.MLP"}, "method.clipper", "method.clipper must be a Clipper, got"),
        ({"_target_": "clipbench.clipping.NoClip"}, "model", "model must be a Module, got"),
        ({"_target_": "clipbench.clipping.NoClip"}, "dataset", "dataset must be a Dataset, got"),
        ({"_target_": "clipbench.clipping.NoClip"}, "optimizer", "optimizer must be an Optimizer, got"),
        ({"_target_": "clipbench.clipping.NoClip"}, "study", "study must be a Study, got"),
        ({"_target_": "clipbench.clipping.NoClip"}, "logger", "logger must be a Tracker, got"),
        ({"_target_": "clipbench.training.schedules.Constant"}, "noise", "noise must be a Noise, got"),
        ({"_target_": "clipbench.data.HeavyTailed"}, "schedule", "schedule must be a Schedule, got"),
        ({"_target_": "clipbench.runs.files.atomic_text", "path": "x", "text": "y"}, "dataset", "dataset must be"),
    ],
)
def test_what_does_not_fit_its_place_is_refused_before_it_is_called(
    node: dict[str, Any], path: str, wanted: str
) -> None:
    assert refused(node, path).startswith(wanted)


def test_inner_nodes_fit_their_arguments() -> None:
    write = {"_target_": "clipbench.runs.files.atomic_text", "path": "x", "text": "y"}
    line = refused({"_target_": "clipbench.clipping.NormClip", "threshold": write})
    assert line.startswith("method.clipper.threshold must be a number or a Threshold, got clipbench.runs.files")
    chain = {"_target_": "clipbench.clipping.Chain", "clippers": [{"_target_": "clipbench.clipping.NoClip"}, write]}
    assert refused(chain).startswith("method.clipper.clippers[1] must be a Clipper, got")
    weight = {"_target_": "clipbench.estimators.PerSample", "threshold": 1.0, "weight": write}
    assert refused(weight, "method.estimator").startswith("method.estimator.weight must be a SampleWeight, got")
    good = {"_target_": "clipbench.clipping.NormClip", "threshold": {"_target_": "clipbench.clipping.EmaThreshold"}}
    check_target(good, "method.clipper")
    assert isinstance(instantiate(good, "method.clipper"), NormClip)


def test_what_a_function_without_annotation_made_is_judged_afterwards(stranger: Path) -> None:
    trust.allow(["stranger"])
    with pytest.raises(
        ConfigError, match=r"method.clipper must be a Clipper, got stranger.number \(which made a int\)"
    ):
        instantiate({"_target_": "stranger.number"}, "method.clipper")


def test_attributes_are_judged_once_they_are_there() -> None:
    with pytest.raises(ConfigError, match=r"method.estimator must be an Estimator, got .*NoClip \(which made a NoClip"):
        instantiate({"_target_": "clipbench.clipping.NoClip"}, "method.estimator")


@pytest.mark.parametrize("key", ["_partial_", "_convert_", "_recursive_", "_args_"])
def test_special_keys_get_one_line(key: str) -> None:
    with pytest.raises(ConfigError, match=f"method.clipper.{key} is not an option"):
        check_target({"_target_": "clipbench.clipping.NoClip", key: True}, "method.clipper")
