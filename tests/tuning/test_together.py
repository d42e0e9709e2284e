"""A tuning whose trials go together chooses as one whose trials go alone, and leaves the same records."""

from __future__ import annotations

import math
from pathlib import Path

from tests.tuning.helpers import records, tuned

COMMON = ("trials=4", "methods=sgd,norm_clip", "final_seeds=0,1")


def outcomes(folder: Path) -> dict[tuple[object, ...], dict[str, object]]:
    return {(run["method"], run["role"], run["trial"], run["seed"]): run for run, _ in records(folder)}


def test_trials_and_final_runs_go_together(tmp_path: Path) -> None:
    tuned(tmp_path / "alone", *COMMON)
    tuned(tmp_path / "batch", *COMMON, "together=8")
    lone, batch = outcomes(tmp_path / "alone"), outcomes(tmp_path / "batch")
    assert set(lone) == set(batch)
    for key, run in batch.items():
        assert run["together"] in (2, 3, 4), key  # a clipped method's first trial is its baseline's, and found
        assert run["status"] == lone[key]["status"]
        one, other = run["final"], lone[key]["final"]
        assert isinstance(one, dict)
        assert isinstance(other, dict)
        assert math.isclose(one["validation_loss"], other["validation_loss"], rel_tol=1e-3), key
