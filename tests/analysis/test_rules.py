"""The table of rules: every method stands in it, and what a step costs is what was calibrated."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from clipbench.analysis import collect, load
from clipbench.analysis.leaderboard import scores
from clipbench.analysis.page.rules import FIELDS, rules, rules_table
from tests.analysis.synthetic import write_calibration, write_run

METHODS = Path(__file__).parents[2] / "conf" / "method"
TASK = "leaderboard_mlp/cpu"


@pytest.fixture
def results(tmp_path: Path) -> Path:
    for method in ("sgd", "norm_clip"):
        write_run(tmp_path, method, 100, TASK, "tune", trial=0, accuracy=False)
        for seed in range(5):
            write_run(tmp_path, method, seed, TASK, "final", accuracy=False, tuned="runs", final={"test_loss": 1.0})
    collect(tmp_path)
    write_calibration(tmp_path, TASK)
    path = tmp_path / "data" / "calibration.parquet"
    pd.read_parquet(path).assign(tuned=True).to_parquet(path)
    return tmp_path


def test_every_method_is_in_the_table_and_nothing_else() -> None:
    found = rules()
    assert set(found) == {path.stem for path in METHODS.glob("*.yaml")}


def test_a_method_without_an_entry_has_dashes(tmp_path: Path) -> None:
    (tmp_path / "method").mkdir()
    (tmp_path / "method" / "mine.yaml").touch()
    (tmp_path / "rules.yaml").write_text("{}")
    assert rules(tmp_path / "rules.yaml") == {"mine": dict.fromkeys(FIELDS, "–")}


def test_an_entry_without_a_field_is_named(tmp_path: Path) -> None:
    path = tmp_path / "rules.yaml"
    path.write_text("mine: {rule: a, paper: b, acts_on: c, state: d}\n")
    with pytest.raises(ValueError, match="mine must have the field defaults_from"):
        rules(path)


def test_a_step_costs_what_the_calibration_says(results: Path) -> None:
    table = rules_table(results)
    assert table.columns == ["method", "rule", "paper", "acts on", "state", "defaults from", f"step time, {TASK}"]
    costs = {row[0]: row[-1] for row in table.rows}
    assert costs["`norm_clip`"] == "1.04 [1.02, 1.06]"
    assert costs["`agc`"] == "–"
    assert table.notes == [
        f"Step time, {TASK}: ratio to SGD's 10 ms [95 % interval], 30 interleaved rounds on Test CPU, 2 threads."
    ]


def test_without_a_calibration_there_is_no_column(results: Path) -> None:
    (results / "data" / "calibration.parquet").unlink()
    table = rules_table(results)
    assert len(table.columns) == len(FIELDS) + 1
    assert table.notes == []


def test_the_leaderboard_finds_the_calibration_of_its_tuned_runs_beside_trials(results: Path) -> None:
    assert scores(results, load(results, TASK))["norm_clip"].seconds == 1.04
