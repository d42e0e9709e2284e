"""Records that travel: what was collected is found by id and fingerprint, on a fresh clone as where it was made."""

from __future__ import annotations

import json
import os
import shutil
import threading
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from clipbench import report
from clipbench.analysis import collect
from clipbench.analysis.load import load
from clipbench.cli.compose import compose
from clipbench.errors import RecordError, Stopped
from clipbench.runs import archive, equal
from clipbench.runs import fingerprint as fingerprints
from clipbench.runs.execute import Outcome, execute
from clipbench.runs.record import Record
from clipbench.runs.sweep import Sweep
from tests.runs.helpers import TINY, info, values


def run(results: Path, *words: str, said: list[str] | None = None, stop_at: int | None = None) -> Outcome:
    config = compose([*TINY, "device=cpu", f"paths.results={results}", *words])
    watch = None if stop_at is None else lambda rows: bool(rows) and rows[-1]["step"] >= stop_at
    return execute(config, (said if said is not None else []).append, watch)


def cloned(results: Path) -> Path:
    """The results folder as a clone has it: what was collected, and no records."""
    collect(results)
    shutil.copytree(results / "data", results.parent / "clone" / "data")
    return results.parent / "clone"


def entered(monkeypatch: pytest.MonkeyPatch, path: Path, *pairs: tuple[str, str]) -> None:
    monkeypatch.setattr(equal, "PATH", path)
    equal._classes.cache_clear()
    equal.enter([{"old": old, "new": new} for old, new in pairs])


def other_code(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """From here on every run reaches the code called `name`."""
    monkeypatch.setattr("clipbench.runs.request.fingerprint", lambda config: name)


def test_a_collected_run_is_found_on_a_clone(tmp_path: Path) -> None:
    made = run(tmp_path / "results")
    clone = cloned(tmp_path / "results")
    found = run(clone)
    assert found.found
    assert found.info["final"] == made.info["final"]
    assert found.folder == clone / "data" / "single.parquet"
    assert not (clone / "runs").exists()
    assert not run(clone, "seed=1").found


def test_what_an_installed_package_brings_is_found_and_its_report_adds_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = run(tmp_path / "results")
    shipped = cloned(tmp_path / "results")
    monkeypatch.setattr(archive, "SHIPPED", shipped)
    found = run(tmp_path / "mine")
    assert found.found
    assert found.folder == shipped / "data" / "single.parquet"
    own = run(tmp_path / "mine", "seed=1")
    assert not own.found
    assert report.main(["summary", "single", "--results", str(tmp_path / "mine")]) == 0
    assert set(load(tmp_path / "mine", "single").runs["run_id"]) == {made.info["run_id"], own.info["run_id"]}
    shutil.rmtree(tmp_path / "mine" / "data")
    assert report.main(["collect", "--results", str(tmp_path / "mine")]) == 0
    assert set(load(tmp_path / "mine", "single").runs["run_id"]) == {made.info["run_id"], own.info["run_id"]}


def test_the_wheel_ships_the_embedded_suite_in_five_megabytes() -> None:
    root = Path(__file__).parents[2]
    project = tomllib.loads((root / "pyproject.toml").read_text())
    included = project["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]
    shipped = {root / source for source in included if source.startswith("results/data/")}
    suite = ("heavy_tailed_mlp__", "leaderboard_mlp__", "leaderboard_pareto__", "calibration")
    assert shipped == {path for path in (root / "results" / "data").iterdir() if path.name.startswith(suite)}
    assert all(included[f"results/data/{path.name}"] == f"clipbench/published/data/{path.name}" for path in shipped)
    assert sum(path.stat().st_size for path in shipped) <= 5_000_000


def test_published_data_are_small() -> None:
    data = Path(__file__).parents[2] / "results" / "data"
    assert 0 < sum(path.stat().st_size for path in data.iterdir()) <= 20_000_000


def test_a_sweep_says_what_it_found(tmp_path: Path) -> None:
    run(tmp_path / "results")
    clone = cloned(tmp_path / "results")
    words = [*TINY, "device=cpu", f"paths.results={clone}", "seed=0,1"]
    assert Sweep(words).to_do().splitlines()[1] == f"found: 1 of 2 in {clone}/data"
    assert Sweep(words).to_do().startswith("sweep: 2 runs, 1 done, 1 to do; about")


def test_a_collected_run_of_other_code_is_repeated_as_a_later_attempt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(tmp_path / "results")
    clone = cloned(tmp_path / "results")
    other_code(monkeypatch, "0ther")
    said: list[str] = []
    assert run(clone, "stale=keep", said=said).found
    assert "made by other code and kept" in said[-1]
    again = run(clone, said=said)
    assert not again.found
    assert any(line.startswith("stale:") for line in said)
    assert again.info["attempt"] == 2
    collect(clone)
    assert load(clone, "single").runs["fingerprint"].tolist() == ["0ther"]


def test_a_failure_newer_than_what_was_collected_is_not_hidden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from clipbench.training.trainer import Trainer

    clone = cloned(run(tmp_path / "results").folder.parents[2])
    other_code(monkeypatch, "0ther")
    with monkeypatch.context() as broken:
        broken.setattr(Trainer, "step", lambda self, step: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run(clone)
    monkeypatch.undo()
    assert run(clone, "retry=never").status == "failed"
    assert not run(clone).found, "the collected success is older"


def test_fingerprints_that_were_entered_count_as_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = run(tmp_path).info["fingerprint"]
    other_code(monkeypatch, "third")
    assert not equal.same(first, "third")
    entered(monkeypatch, tmp_path / "equal.yaml", (first, "second"), ("second", "third"))
    assert equal.same(first, "third")
    assert not equal.same(first, "fourth")
    assert run(tmp_path).found
    assert len(equal.entries()) == 2
    assert equal.enter([{"old": "third", "new": first}]) == 0
    (tmp_path / "equal.yaml").write_text("- {old: a}\n")
    with pytest.raises(RecordError, match="must be a list of entries"):
        equal.entries()
    equal._classes.cache_clear()


def test_a_resumed_run_of_changed_code_carries_the_old_fingerprint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(Stopped):
        run(tmp_path, stop_at=20)
    (path,) = tmp_path.glob("runs/*/*/run.json")
    old = json.loads(path.read_text())["fingerprint"]
    other_code(monkeypatch, "newer")
    resumed = run(tmp_path, "stale=keep")
    assert resumed.info["fingerprint"] == old
    assert resumed.info["continued_by"] == ["newer"]
    monkeypatch.undo()
    assert run(tmp_path).found


def test_a_changed_own_class_is_to_do_in_a_sweep_and_in_a_tuning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the own class imports beside it counts too."""
    from clipbench.tuning import plan

    (tmp_path / "mine.py").write_text(
        "from clipbench.clipping import NoClip\nfrom mine_helper import number\n\n\n"
        "class Mine(NoClip):\n    factor = number()\n"
    )
    helper = tmp_path / "mine_helper.py"
    helper.write_text("def number():\n    return 1\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    own = ["method.clipper._target_=mine.Mine", "device=cpu", f"paths.results={tmp_path}"]
    assert not run(tmp_path, *own).found
    sweep = [*TINY, *own]
    tuning = ["experiment=heavy_tailed_mlp/smoke", *own, f"paths.tuned={tmp_path}", "tuning.methods=[sgd]"]
    assert "1 done, 0 to do" in Sweep(sweep).to_do()
    before = plan(tuning).key("sgd")
    helper.write_text("def number():\n    return 22\n")
    fingerprints._digest.cache_clear()
    assert "0 done, 1 to do" in Sweep(sweep).to_do()
    assert plan(tuning).key("sgd") != before
    fingerprints._digest.cache_clear()


def test_a_checkpoint_of_another_run_is_set_aside(tmp_path: Path) -> None:
    for seed in (0, 7):
        with pytest.raises(Stopped):
            run(tmp_path, f"seed={seed}", stop_at=20)
    zero, seven = (
        next(path.parent for path in tmp_path.glob("runs/*/*/run.json") if info(path.parent)["seed"] == seed)
        for seed in (0, 7)
    )
    shutil.copy(seven / "checkpoint.pt", zero / "checkpoint.pt")
    said: list[str] = []
    outcome = run(tmp_path, said=said)
    assert any("is of another run or version (run_id" in line and "checkpoint.pt" in line for line in said)
    assert (zero / "checkpoint.pt.foreign-1").exists()
    assert values(outcome.folder) == values(run(tmp_path / "clean").folder)


def test_a_checkpoint_of_another_layout_is_set_aside(tmp_path: Path) -> None:
    with pytest.raises(Stopped):
        run(tmp_path, stop_at=20)
    (path,) = tmp_path.glob("runs/*/*/checkpoint.pt")
    content = torch.load(path, weights_only=True)
    torch.save(content | {"layout": 1}, path)
    said: list[str] = []
    assert run(tmp_path, said=said).status == "ok"
    assert any("layout 1 for" in line for line in said)


def _no_state(content: dict[str, Any]) -> Any:
    return {key: value for key, value in content.items() if key != "state"}


def _other_shape(content: dict[str, Any]) -> Any:
    """The last layer's weights, so that all before them are loaded when the misfit is seen."""
    model = content["state"]["model"]
    return content | {"state": content["state"] | {"model": model | {list(model)[-1]: torch.zeros(3)}}}


def _no_clock(content: dict[str, Any]) -> Any:
    return content | {"state": {key: value for key, value in content["state"].items() if key != "clipper"}}


@pytest.mark.parametrize("made", [lambda content: [1, 2], _no_state, _other_shape, _no_clock, lambda content: {}])
def test_a_checkpoint_that_does_not_fit_is_set_aside_once(made: Callable[[Any], Any], tmp_path: Path) -> None:
    """It would fail at every repeat; and what was loaded before the misfit showed is taken back."""
    with pytest.raises(Stopped):
        run(tmp_path, stop_at=20)
    (path,) = tmp_path.glob("runs/*/*/checkpoint.pt")
    torch.save(made(torch.load(path, weights_only=True)), path)
    said: list[str] = []
    outcome = run(tmp_path, said=said)
    assert (outcome.status, outcome.found) == ("ok", False)
    assert any("the run starts without it" in line for line in said)
    assert (path.parent / "checkpoint.pt.foreign-1").exists()
    assert values(outcome.folder) == values(run(tmp_path / "clean").folder)


def test_a_finished_record_is_mended(tmp_path: Path) -> None:
    """A broken config.yaml is written anew, and a checkpoint that a death at the end left is removed."""
    folder = run(tmp_path).folder
    before = (folder / "config.yaml").read_text()
    (folder / "config.yaml").write_text("a: [")
    (folder / "checkpoint.pt").write_bytes(b"left over")
    said: list[str] = []
    assert run(tmp_path, said=said).found
    assert (folder / "config.yaml").read_text() == before
    assert not (folder / "checkpoint.pt").exists()
    assert any("config.yaml was written anew" in line for line in said)
    assert collect(tmp_path).warnings == []


@pytest.mark.parametrize("name", ["run.json", "metrics.parquet"])
def test_a_file_that_cannot_be_read_for_now_is_left_alone(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = run(tmp_path).folder
    read = Path.read_bytes

    def fails(self: Path) -> bytes:
        if self.name == name:
            raise OSError(5, "Input/output error")
        return read(self)

    with monkeypatch.context() as broken:
        broken.setattr(Path, "read_bytes", fails)
        with pytest.raises(RecordError, match=rf"cannot read .*{name}: Input/output error"):
            run(tmp_path)
    assert not list(folder.glob("*.damaged-*"))
    assert run(tmp_path).found


def test_a_status_of_another_version_is_not_overwritten(tmp_path: Path) -> None:
    folder = run(tmp_path).folder
    (folder / "run.json").write_text(json.dumps(info(folder) | {"status": "paused"}))
    with pytest.raises(RecordError, match=r"must have a status of ok, .*, got paused; left as it is"):
        run(tmp_path)
    assert info(folder)["status"] == "paused"


def test_odd_entries_are_one_line_and_the_run_is_repeated(tmp_path: Path) -> None:
    folder = run(tmp_path).folder
    (folder / "run.json").write_text(json.dumps(info(folder) | {"final": [1, 2]}))
    said: list[str] = []
    assert not run(tmp_path, said=said).found
    assert any("final must be a mapping, got [1, 2]" in line for line in said)


def test_a_planted_link_is_not_written_through(tmp_path: Path) -> None:
    record, victim = Record(tmp_path), tmp_path / "victim"
    victim.write_text("whole")
    (tmp_path / f".run.json.{os.getpid()}-{threading.get_ident()}.part").symlink_to(victim)
    record.write_info({"a": 1})
    assert victim.read_text() == "whole"
    assert not (tmp_path / "run.json").is_symlink()


@pytest.mark.parametrize("word", ["~/x", "~/a/../x", "~/x/"])
def test_a_tilde_is_the_users_home_from_the_first_file_to_the_last(
    word: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, here = tmp_path / "home", tmp_path / "here"
    home.mkdir()
    (home / "a").mkdir()
    here.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(here)
    config = compose([*TINY, "device=cpu", f"paths.results='{word}'"])
    outcome = execute(config, say=lambda line: None)
    assert outcome.folder.resolve().parents[2] == home / "x"
    assert len(values(outcome.folder)) > 10
    assert execute(config, say=lambda line: None).found
    assert not list(here.iterdir())
