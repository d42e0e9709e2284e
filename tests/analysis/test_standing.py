"""What counts on the leaderboard where data hold the runs of several tunings: one selection a method, all as SGD's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from clipbench.analysis import collect, load
from clipbench.analysis.claims.readings import chosen_runs
from clipbench.analysis.leaderboard import boards, scores
from clipbench.analysis.leaderboard_page import table
from clipbench.analysis.standing import standing
from clipbench.runs.archive import selection_file
from tests.analysis.synthetic import write_run

SEEDS = 6
TASK = "first/cpu"


def finals(root: Path, method: str, loss: float, **more: Any) -> list[str]:
    """Final runs of one setting, all with the same test loss; their ids."""
    values = {"test_loss": loss, "validation_loss": loss}
    data = {"sum": "s", "trivial": {"loss": 2.0}}
    entries = {"accuracy": False, "final": values, "data": data, "tuned": "trial 1 of 4"} | more
    return [write_run(root, method, seed, TASK, "final", **entries).name for seed in range(SEEDS)]


def selected(root: Path, trials: int = 4, **ids: list[str]) -> None:
    """Add to what the latest tunings selected: the ids of the final runs by method."""
    path = selection_file(root, TASK)
    path.parent.mkdir(parents=True, exist_ok=True)
    known = json.loads(path.read_text()) if path.exists() else {}
    new = {
        method: {"trials": trials, "is_baseline": False, "settings": {"optimizer.lr": 0.1}, "final_runs": runs}
        for method, runs in ids.items()
    }
    path.write_text(json.dumps(known | new))


@pytest.fixture
def retuned(tmp_path: Path) -> Path:
    """SGD tuned twice: first to a loss of 1.0, then, at another rate, to 0.5; and a rule at 0.4."""
    finals(tmp_path, "sgd", 1.0, lr=0.1)
    selected(tmp_path, sgd=finals(tmp_path, "sgd", 0.5, lr=0.2), rule=finals(tmp_path, "rule", 0.4, lr=0.3))
    collect(tmp_path)
    return tmp_path


def test_a_second_tuning_replaces_the_first(retuned: Path) -> None:
    experiment = load(retuned, TASK)
    assert len(experiment.runs) == 3 * SEEDS
    here = scores(retuned, experiment)
    assert list(here["rule"].errors.values()) == pytest.approx([0.8] * SEEDS)
    assert list(here["sgd"].errors.values()) == pytest.approx([1.0] * SEEDS)


def test_claims_too_read_the_latest_selection(retuned: Path) -> None:
    experiment = load(retuned, TASK)
    found = chosen_runs(experiment, "sgd", role="final")
    assert [final["test_loss"] for final in found["final"]] == [0.5] * SEEDS
    assert len(chosen_runs(experiment._replace(tuning={}), "sgd", role="final")) == 2 * SEEDS


def test_methods_that_were_run_otherwise_than_sgd_are_left_out_and_named(tmp_path: Path) -> None:
    selected(
        tmp_path,
        sgd=finals(tmp_path, "sgd", 0.5, lr=0.1, steps=200),
        rule=finals(tmp_path, "rule", 0.4, lr=0.2, steps=200),
        longer=finals(tmp_path, "longer", 0.1, lr=0.1, steps=400),
        other_data=finals(tmp_path, "other_data", 0.1, steps=200, data={"sum": "t", "trivial": {"loss": 2.0}}),
    )
    selected(tmp_path, trials=8, more=finals(tmp_path, "more", 0.1, lr=0.3, steps=200))
    collect(tmp_path)
    (tmp_path / "tasks.yaml").write_text("first: {methods: all, together: 8}\n")
    (board,) = boards(tmp_path, "cpu", tmp_path / "tasks.yaml")
    assert [place.method for place in board.places] == ["rule", "sgd"]
    assert table(board).notes[-1] == (
        "Left out, as they were not tuned and run as SGD was: longer (steps 400, SGD's 200), "
        "other_data (data t, SGD's s), more (trials 8, SGD's 4)."
    )


def test_nothing_is_left_out_where_all_were_tuned_alike(retuned: Path) -> None:
    left = standing(load(retuned, TASK))
    assert left.left_out == {}
    assert len(left.experiment.runs) == 2 * SEEDS


def test_a_run_that_learned_nothing_is_told_from_one_that_diverged(tmp_path: Path) -> None:
    finals(tmp_path, "sgd", 1.0)
    finals(tmp_path, "stuck", 1.9)  # not below 0.95 of the best constant's 2.0
    finals(tmp_path, "gone", 1.0, status="diverged")
    collect(tmp_path)
    here = scores(tmp_path, load(tmp_path, TASK))
    assert [(here[m].diverged, here[m].dead) for m in ("sgd", "stuck", "gone")] == [(0.0, 0.0), (0.0, 1.0), (1.0, 0.0)]
    assert list(here["stuck"].errors.values()) == list(here["gone"].errors.values()) == [2.0] * SEEDS
    (tmp_path / "tasks.yaml").write_text("first: {methods: all, together: 8}\n")
    shown = table(boards(tmp_path, "cpu", tmp_path / "tasks.yaml")[0])
    assert shown.title == "Leaderboard: 3 methods, 1 task"
    assert {row[0]: row[4:6] for row in shown.rows}["stuck"] == ["0 %", "100 %"]
