"""Which calibrated step times hold for which runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from clipbench.runs import equal
from clipbench.timing.match import matching
from clipbench.timing.work import work

CONFIG: dict[str, Any] = {
    "model": {"name": "mlp", "widths": [64, 64]}, "batch_size": 64, "accumulation": 2,
    "method": {"name": "sgd", "clipper": {"threshold": 1.0, "rank": 10}}, "optimizer": {"lr": 0.1}, "seed": 0,
}  # fmt: skip


def row(method: str = "sgd", **changes: Any) -> dict[str, Any]:
    return {
        "method": method, "device": "A", "threads": 2, "precision": "fp32", "samples_per_step": 128,
        "fingerprint": "f1", "tuned": False, "measured": "2026-01-01", "step_seconds": 1.0, "work": work(CONFIG),
    } | changes  # fmt: skip


def run(method: str = "sgd", name: str = "A", threads: int = 2, **changes: Any) -> dict[str, Any]:
    return {
        "method": method, "device": {"name": name, "type": "cpu", "threads": threads}, "precision": "fp32",
        "samples_per_step": 128, "fingerprint": "f1", "tuned": None, "role": "single", "config": CONFIG,
    } | changes  # fmt: skip


def match(rows: list[dict[str, Any]], runs: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], str]:
    found, note = matching(pd.DataFrame(rows), pd.DataFrame(runs))
    return found.to_dict("records"), note


# Runs of one number of samples per step and one code whose steps do not cost the same.
OTHER_WORK: list[dict[str, Any]] = [
    {"model": {"name": "mlp", "widths": [1024, 1024]}},
    {"batch_size": 128, "accumulation": 1},
    {"dataset": {"context": 64}},
    {"compile": True},
    {"method": {"name": "sgd", "clipper": {"threshold": 1.0, "rank": 64}}},
]
SAME_WORK: list[dict[str, Any]] = [
    {"optimizer": {"lr": 0.3}},
    {"seed": 7},
    {"method": {"name": "sgd", "clipper": {"threshold": 5.0, "rank": 10}, "tuning": {"lr": {}}}},
]


@pytest.mark.parametrize("change", SAME_WORK)
def test_rates_thresholds_and_seeds_do_not_change_the_work(change: dict[str, Any]) -> None:
    assert match([row()], [run(), run(config=CONFIG | change)]) == ([row()], "")


def test_a_row_of_before_holds_where_the_runs_share_one_work() -> None:
    bare = {key: value for key, value in row().items() if key != "work"}
    other = run(config=CONFIG | OTHER_WORK[0])
    assert match([bare], [run(), run()]) == ([bare], "")
    assert match([bare], [run(), other]) == ([], "The calibration of sgd is of another model, data or batch.")
    mixed = [bare, row("norm_clip")]  # a file that knows the column of some rows only
    assert [one["method"] for one in match(mixed, [run(), run("norm_clip")])[0]] == ["sgd", "norm_clip"]


def test_a_text_that_collecting_hides_does_not_count() -> None:
    assert work({"dataset": {"path": "/somewhere/else"}}) == work({"dataset": {"path": "…"}})


def test_rows_that_share_everything_hold() -> None:
    rows = [row(), row("norm_clip", fingerprint="f2")]
    assert match(rows, [run(), run("norm_clip", fingerprint="f2"), run()]) == (rows, "")


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"precision": "bf16"}, "another precision"),
        ({"samples_per_step": 64}, "another number of samples per step"),
        ({"fingerprint": "f2"}, "another code"),
        ({"tuned": "trial 1 of 8 (ours, validation_loss)"}, "other tuned settings"),
        ({"role": "final"}, "other tuned settings"),
        *(({"config": CONFIG | change}, "another model, data or batch") for change in OTHER_WORK),
    ],
)
def test_a_row_that_differs_in_one_thing_from_one_run_is_left_out_and_said(change: dict[str, Any], name: str) -> None:
    rows = [row(), row("norm_clip")]
    found, note = match(rows, [run(), run(), run(**change), run("norm_clip")])
    assert found == rows[1:]
    assert note == f"The calibration of sgd is of {name}."


def test_code_that_counts_as_the_same_holds_and_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = {"experiment": "toy/cpu", "method": "sgd", "together": False, "commit": "c", "steps": 2, "rows": 4}
    monkeypatch.setattr(equal, "PATH", tmp_path / "equal.yaml")
    equal._classes.cache_clear()
    equal.enter([{**entry, "old": "f1", "new": "f2", "digest": "d"}])
    found, note = match([row(fingerprint="f2"), row("norm_clip", fingerprint="f3")], [run(), run("norm_clip")])
    equal._classes.cache_clear()
    assert [one["method"] for one in found] == ["sgd"]
    assert note == (
        "The calibration of norm_clip is of another code. "
        "Calibrated with code that gives the same numbers as the runs' (conf/equal.yaml), not with theirs: sgd."
    )


def test_methods_that_differ_in_the_same_thing_are_one_note() -> None:
    rows = [row(), row("norm_clip"), row("ps_clip")]
    others = [run(fingerprint="f2"), run("norm_clip", precision="bf16"), run("ps_clip", fingerprint="f2")]
    assert match(rows, others) == (
        [],
        "The calibrations of sgd, ps_clip are of another code. The calibration of norm_clip is of another precision.",
    )


def test_one_thread_is_one() -> None:
    note = match([row()], [run(threads=1)])[1]
    assert note == "No calibration was made on the runs' machine (A, 1 thread)."


def test_tuned_runs_take_tuned_rows() -> None:
    tuned = [row(tuned=True)]
    assert match(tuned, [run(role="final", tuned="trial 1 of 8 (ours, validation_loss)")]) == (tuned, "")
    assert match(tuned, [run()])[0] == []


@pytest.mark.parametrize("other", [{"name": "B"}, {"threads": 4}])
def test_another_machine_s_row_is_never_used(other: dict[str, Any]) -> None:
    found, note = match([row()], [run(**other)])
    assert found == []
    assert note.startswith("No calibration was made on the runs' machine")


def test_a_calibration_that_does_not_say_what_it_was_made_with_does_not_hold() -> None:
    bare = {key: value for key, value in row().items() if key not in ("precision", "fingerprint")}
    assert match([bare], [run()])[0] == []


def test_the_machine_of_most_runs_decides_then_the_later_calibration_then_the_name() -> None:
    rows = [row(), row(device="B"), row(device="C", measured="2026-01-02")]
    found, note = match(rows, [run(), run(name="B"), run(name="B"), run(name="C")])
    assert (found, note) == ([rows[1]], "")
    found, note = match(rows, [run(), run(name="B"), run(name="C")])
    assert found == [rows[2]]
    assert note.startswith("Calibrated on C, 2 threads: 2 other machines made as many runs, this")
    for order in (rows[:2], rows[1::-1]):
        found, note = match(order, [run(), run(name="B")])
        assert [r["device"] for r in found] == ["A"]
