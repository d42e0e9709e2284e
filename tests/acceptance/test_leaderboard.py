"""The leaderboard as a command: an own method joins what was run before, and only its runs are trained."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hydra.core.global_hydra import GlobalHydra

from clipbench import leaderboard
from clipbench.analysis import collect
from clipbench.errors import ConfigError
from clipbench.runs import archive
from clipbench.tuning.plan import Plan
from tests.analysis.synthetic import write_run

OWN = """\
name: half_clip
estimator: {_target_: clipbench.estimators.Batch}
clipper: {_target_: clipbench.clipping.NormClip, threshold: 2.0}
"""


def finished(results: Path) -> dict[str, float]:
    """Folder of every record → when it was finished."""
    return {str(path.parent): path.stat().st_mtime for path in results.rglob("run.json")}


@pytest.mark.slow
def test_an_own_method_costs_its_own_runs_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = tmp_path / "results"
    words = ["size=smoke", "tasks=leaderboard_mlp", f"paths.results={results}", f"paths.tuned={tmp_path}/tuned",
             "device=cpu", "threads=1"]  # fmt: skip
    leaderboard.main([*words, "methods=norm_clip,median"])
    before = finished(results)
    text = (results / "tables" / "leaderboard.md").read_text()
    assert "| norm_clip" in text
    assert "| median |" in text or "| median (= sgd)" not in text
    assert (results / "figures" / "leaderboard.png").exists()
    folder = tmp_path / "conf" / "method"
    folder.mkdir(parents=True)
    (folder / "half_clip.yaml").write_text(OWN)
    leaderboard.main([*words, "methods=norm_clip,median,half_clip", "--config-dir", str(folder.parent)])
    after = finished(results)
    assert {place: time for place, time in after.items() if place in before} == before
    added = [json.loads(Path(place, "run.json").read_text())["method"] for place in after if place not in before]
    assert set(added) == {"half_clip"}
    assert "| half_clip" in (results / "tables" / "leaderboard.md").read_text()
    assert "half_clip final seed 0" in capsys.readouterr().out


def leave_finals(root: Path, experiment: str, method: str, loss: float) -> None:
    for seed in range(3):
        final = {"test_loss": loss, "validation_loss": loss}
        data = {"sum": "s", "trivial": {"loss": 2.0}}
        write_run(root, method, seed, experiment, "final", accuracy=False, final=final, data=data, tuned="trial 1 of 4")


class Stub:
    """A worker that leaves records at once, but for the text's task, whose data are not there."""

    worked: tuple[str, ...] = ()

    def __init__(self, plan: Plan, say: object) -> None:
        self.plan = plan
        Stub.worked += (plan.experiment,)
        if plan.experiment.startswith("leaderboard_gpt"):
            raise ConfigError("shakespeare_char is missing: it is not there\nput it there")

    def go(self) -> list[object]:
        for method in set(self.plan.methods):
            leave_finals(self.plan.results, self.plan.experiment, method, 0.5 if method == "sgd" else 0.4)
        return []


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch) -> type[Stub]:
    monkeypatch.setattr("clipbench.tuning.Worker", Stub)
    monkeypatch.setattr(Stub, "worked", ())
    return Stub


def test_published_baselines_that_are_found_stand_beside_ones_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """An installed package brings SGD's runs: they are found, not run, and the table is of both."""
    leave_finals(tmp_path / "shipped", "leaderboard_mlp/smoke", "sgd", 0.5)
    leave_finals(tmp_path / "shipped", "leaderboard_mlp/smoke", "agc", 0.45)
    collect(tmp_path / "shipped")
    outcome = {"agc": {"trials": 4}, "sgd": {"trials": 4}}
    archive.selection_file(tmp_path / "shipped", "leaderboard_mlp/smoke").write_text(json.dumps(outcome))
    monkeypatch.setattr(archive, "SHIPPED", tmp_path / "shipped")
    results = tmp_path / "mine"

    class Finds(Stub):
        def go(self) -> list[object]:
            leave_finals(results, self.plan.experiment, "norm_clip", 0.4)
            own = archive.selection_file(results, self.plan.experiment)
            own.parent.mkdir()
            own.write_text(json.dumps({"norm_clip": {"trials": 4}}))
            return []

    monkeypatch.setattr("clipbench.tuning.Worker", Finds)
    leaderboard.main(["size=smoke", "tasks=leaderboard_mlp", "methods=norm_clip", f"paths.results={results}"])
    text = (results / "tables" / "leaderboard.md").read_text()
    rows = [line.split(" | ")[0].strip("| ") for line in text.split("\n")]
    assert [row for row in rows if row in ("norm_clip", "agc", "sgd")] == ["norm_clip", "agc", "sgd"]
    assert "tables/leaderboard.md" in capsys.readouterr().out
    known = json.loads(archive.selection_file(results, "leaderboard_mlp/smoke").read_text())
    assert set(known) == {"agc", "norm_clip", "sgd"}


def test_a_task_that_cannot_run_leaves_the_others_alone(
    tmp_path: Path, stub: type[Stub], capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["size=smoke", "tasks=leaderboard_mlp,leaderboard_pareto,leaderboard_gpt", "methods=norm_clip"]
    with pytest.raises(ConfigError, match="shakespeare_char is missing"):
        leaderboard.main([*words, f"paths.results={tmp_path}"])
    said = capsys.readouterr()
    assert "leaderboard_gpt/smoke is left out: shakespeare_char is missing: it is not there\n" in said.err
    assert "2 methods, 2 tasks" in (tmp_path / "tables" / "leaderboard.md").read_text()


def test_an_option_that_fits_not_every_task_is_told_before_any_of_them_runs(stub: type[Stub]) -> None:
    with pytest.raises(Exception, match=r"model\.layers"):
        leaderboard.main(["size=smoke", "tasks=leaderboard_gpt,leaderboard_mlp", "methods=norm_clip", "model.layers=2"])
    assert stub.worked == ()


def test_an_empty_board_is_said(tmp_path: Path, stub: type[Stub], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigError, match="shakespeare_char is missing"):
        leaderboard.main(["size=smoke", "tasks=leaderboard_gpt", "methods=norm_clip", f"paths.results={tmp_path}"])
    assert "no table: no task has finished final runs of tuned sgd" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["size=paper"], "size must be smoke or cpu, got paper"),
        (["tasks=leaderboard_mpl"], r"tasks must be among leaderboard_mlp, .*, got leaderboard_mpl"),
        (["method=sgd"], "method=sgd is set by clipbench.leaderboard"),
        (["experiment=rates/cpu"], "experiment=rates/cpu is set by clipbench.leaderboard"),
        (["sise=cpu"], r"sise is not an option .did you mean size."),
        (["--size", "cpu"], "--size must be an option as key=value"),
    ],
)
def test_bad_options(words: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        leaderboard.main(words)
    assert not GlobalHydra.instance().is_initialized()
