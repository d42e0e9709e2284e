"""The command: what it measures, from which weights, what it stores, and what it refuses."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import yaml

from clipbench import calibrate
from clipbench.cli.command import condense
from clipbench.cli.compose import compose
from clipbench.config.tuned import base
from clipbench.errors import ConfigError, RecordError
from clipbench.timing import session, table
from clipbench.timing.footprint import Footprint, footprint
from clipbench.timing.session import session_of
from clipbench.timing.table import store

SMALL = [
    "experiment=heavy_tailed_mlp/smoke", "device=cpu", "threads=1", "dataset.samples=400",
    "dataset.validation=100", "dataset.test=100", "calibration.rounds=3", "calibration.settle_steps=2",
    "calibration.train_steps=5",
]  # fmt: skip
SLOW = ["method=sgd", "method.clipper._target_=tests.timing.slow.SlowClip", "+method.clipper.seconds=0.02"]


def configs(**methods: list[str]) -> dict[str, dict[str, Any]]:
    return {name: compose([*SMALL, *words]) for name, words in methods.items()}


def frame(device: str = "A", threads: int = 2, experiment: str = "e/cpu", **ratios: float) -> pd.DataFrame:
    ratios = ratios or {"sgd": 1.0, "norm_clip": 1.2}
    rows = [
        {"experiment": experiment, "method": m, "device": device, "threads": threads, "step_seconds": r, "ratio": r,
         "ratio_low": r, "ratio_high": r, "n": 30, "spread": 0.1}
        for m, r in ratios.items()
    ]  # fmt: skip
    return pd.DataFrame(rows)


def test_a_method_of_known_cost() -> None:
    found = session_of(configs(sgd=["method=sgd"], slow=SLOW), "sgd")
    extra = found.timings["slow"].step_seconds - found.timings["sgd"].step_seconds
    assert 0.015 < extra < 0.2, "a busy machine lengthens a wait and never shortens it"
    assert found.timings["slow"].ratio.estimate > 2
    assert found.timings["sgd"].ratio.estimate == 1.0
    assert found.notes == []


def test_all_methods_start_from_the_same_trained_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, list[torch.Tensor]] = {}
    setups = []
    build = session.build

    def spy(*arguments: Any) -> Any:
        setups.append(build(*arguments))
        if "initial" not in seen:
            seen["initial"] = [p.detach().clone() for p in setups[0].model.parameters()]
        return setups[-1]

    def interleave(steps: dict[str, Any], rounds: int, **others: Any) -> dict[str, list[float]]:
        for name, setup in zip(steps, setups[1:], strict=True):
            seen[name] = [p.detach().clone() for p in setup.model.parameters()]
        return {name: [1.0] * rounds for name in steps}

    monkeypatch.setattr(session, "build", spy)
    monkeypatch.setattr(session, "interleave", interleave)
    session_of(configs(sgd=["method=sgd"], norm_clip=["method=norm_clip"]), "sgd")
    assert all(torch.equal(a, b) for a, b in zip(seen["sgd"], seen["norm_clip"], strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(seen["sgd"], seen["initial"], strict=True))
    assert setups[0].data is setups[1].data is setups[2].data


def test_plain_training_that_diverges_is_refused() -> None:
    diverging = configs(sgd=["method=sgd", "optimizer.lr=1e30", "calibration.train_steps=20"])
    with pytest.raises(ConfigError, match=r"calibration.train_steps must be few enough .* got 20"):
        session_of(diverging, "sgd")


def test_a_method_that_diverges_while_measured_is_named() -> None:
    found = session_of(configs(sgd=["method=sgd"], other=["method=sgd", "optimizer.lr=1e30"]), "sgd")
    assert len(found.notes) == 1
    assert found.notes[0].startswith("other's weights were not finite")


def test_two_devices_lie_side_by_side_and_a_new_session_replaces_its_own(tmp_path: Path) -> None:
    path, said = tmp_path / "calibration.parquet", []
    for each in (frame("A"), frame("B"), frame("A", threads=1), frame("A", experiment="e/paper")):
        store(path, each, said.append)
    assert len(pd.read_parquet(path)) == 8
    assert said == []
    store(path, frame("A", sgd=1.0, ps_clip=1.5), said.append)
    kept = pd.read_parquet(path)
    mine = kept[(kept["device"] == "A") & (kept["threads"] == 2) & (kept["experiment"] == "e/cpu")]
    assert sorted(mine["method"]) == ["ps_clip", "sgd"]
    assert len(kept) == 8
    assert said == ["the earlier rows of norm_clip are dropped: times of two sessions cannot be compared"]


def test_rows_of_two_devices_are_refused_as_one_session(tmp_path: Path) -> None:
    mixed = pd.concat([frame("A"), frame("B")])
    with pytest.raises(ValueError, match=r"new must hold one device, got \['A', 'B'\]"):
        store(tmp_path / "calibration.parquet", mixed, print)
    assert not list(tmp_path.iterdir())


def test_a_truncated_table_is_set_aside(tmp_path: Path) -> None:
    path, said = tmp_path / "calibration.parquet", []
    store(path, frame("A"), said.append)
    path.write_bytes(path.read_bytes()[:100])
    store(path, frame("B"), said.append)
    assert sorted(pd.read_parquet(path)["device"].unique()) == ["B"]
    assert (tmp_path / "calibration.parquet.damaged-1").exists()
    assert "is damaged" in said[0]


def test_a_disturbed_machine_is_called_so() -> None:
    quiet = frame()
    assert calibrate.disturbed(quiet) == []
    (line,) = calibrate.disturbed(quiet.assign(spread=[0.1, 0.35]))
    assert line.startswith("the machine is disturbed: the middle half of norm_clip's rounds spreads by 35%")


def test_two_calibrations_at_once_are_refused(tmp_path: Path) -> None:
    with (
        table.undisturbed(tmp_path),
        pytest.raises(RecordError, match="another calibration is under way"),
        table.undisturbed(tmp_path),
    ):
        pass
    with table.undisturbed(tmp_path):
        pass


def test_the_baseline_is_always_there_and_tuned_settings_are_seen(tmp_path: Path) -> None:
    found, tuned = calibrate.configs([*SMALL, "calibration.methods=[norm_clip]"])
    assert list(found) == ["sgd", "norm_clip"]
    assert tuned == {"sgd": False, "norm_clip": False}
    words = [*SMALL, f"paths.tuned={tmp_path}"]
    plain = compose([*words, "method=norm_clip"])
    content = {
        "mark": "trial 1 of 4 (ours, validation_loss)",
        "is_baseline": False,
        "settings": {"optimizer": {"lr": 0.05}},
    }
    content["base"] = base(plain, ["optimizer.lr"])
    (tmp_path / "heavy_tailed_mlp/smoke").mkdir(parents=True)
    (tmp_path / "heavy_tailed_mlp/smoke/norm_clip.yaml").write_text(yaml.safe_dump(content))
    assert calibrate.configs(words)[1] == {"sgd": False, "norm_clip": True, "ps_clip": False}
    assert not any(calibrate.configs([*words, "tuned=none"])[1].values())


def test_the_whole_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    import clipbench.timing.footprint as package

    monkeypatch.setattr(package, "footprint", lambda config: Footprint(0.5, 2 * 10**6, 10**6))
    calibrate.main([*SMALL, "methods=norm_clip", f"paths.results={tmp_path}"])
    stored = pd.read_parquet(tmp_path / "data" / "calibration.parquet")
    assert list(stored["method"]) == ["sgd", "norm_clip"]
    assert set(stored["n"]) == {3}
    assert set(stored["threads"]) == {1}
    assert (stored["step_seconds"] > 0).all()
    assert stored["ratio"][1] == pytest.approx(stored["step_seconds"][1] / stored["step_seconds"][0])
    text = (tmp_path / "tables" / "heavy_tailed_mlp__smoke__calibration.md").read_text()
    assert text in capsys.readouterr().out
    assert "| norm_clip |" in text


BAD = [
    (["rounds=1"], "calibration.rounds must be >= 2, got 1"),
    (["rounds=x"], "calibration.rounds must be a valid integer, got x"),
    (["train_steps=0"], "calibration.train_steps must be >= 1, got 0"),
    (["methods=ps_clop"], "method must be one of"),
    (["method=sgd"], "method is chosen by methods=a,b for clipbench.calibrate"),
    (["device=cuda:99"], "device must be there, got cuda:99"),
    (["rounds"], "rounds must be an option as key=value"),
]


@pytest.mark.parametrize(("words", "line"), BAD, ids=[" ".join(words) for words, _ in BAD])
def test_bad_input_is_one_line(words: list[str], line: str, tmp_path: Path) -> None:
    with pytest.raises(Exception) as raised:  # noqa: PT011 - the line is what is checked
        calibrate.main([*SMALL, *words, f"paths.results={tmp_path}"])
    said = condense(raised.value)
    assert said is not None, raised.value
    assert line in said
    assert not (tmp_path / "data" / "calibration.parquet").exists()


def test_help_needs_no_torch() -> None:
    code = (
        "import sys, runpy; sys.argv = ['c', '--help']; runpy.run_module('clipbench.calibrate', run_name='__main__'); "
    )
    code += "assert not {'torch', 'scipy', 'pandas'} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "rounds=30" in done.stdout


@pytest.mark.slow
def test_the_footprint_of_a_larger_method_is_larger() -> None:
    """A batch of 4096 through 2 × 1024 units keeps at least 4096 · 2 · 1024 · 4 = 34 MB of activations."""
    large = ["model.widths=[1024,1024]", "dataset.samples=6000", "batch_size=4096"]
    small = footprint(compose([*SMALL, "method=sgd"]))
    big = footprint(compose([*SMALL, "method=sgd", *large]))
    assert big.peak_memory_bytes - big.base_memory_bytes > 30e6
    assert small.peak_memory_bytes - small.base_memory_bytes < 20e6
    assert 0 < small.setup_seconds < 60


@pytest.mark.slow
def test_a_footprint_that_fails_says_why() -> None:
    config = compose([*SMALL, "method=sgd"]) | {"batch_size": 10**6}
    with pytest.raises(RuntimeError, match=r"memory of sgd could not be measured: .*batch_size must be"):
        footprint(config)
