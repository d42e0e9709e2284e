"""What may stand in one table, what is said where it may, and what counts as lost or dropped."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from clipbench.analysis import collect, load, panel_tables, panels
from clipbench.analysis.groups import Panel
from clipbench.analysis.load import Experiment
from clipbench.analysis.shares import clipped_shares, dropped_share
from tests.analysis.synthetic import write_run


def shown(root: Path) -> list[Panel]:
    collect(root)
    return panels(load(root, "toy/cpu"))


@pytest.mark.parametrize(
    ("entry", "one", "other", "words"),
    [
        ("data", {"name": "toy", "sum": "a" * 24}, {"name": "toy", "sum": "b" * 24},
         ["data aaaaaaaa", "data bbbbbbbb"]),
        ("precision", "fp32", "bf16", ["bf16", "fp32"]),
        ("tuned", None, "trial 3 of 8 (ours, validation_loss)", ["", "tuned"]),
    ],
)  # fmt: skip
def test_what_is_never_averaged_or_compared(entry: str, one: Any, other: Any, words: list[str], tmp_path: Path) -> None:
    """Seeds 0 and 1 of one kind, 2 and 3 of the other, of two methods: two tables of four runs each."""
    for method in ("sgd", "norm_clip"):
        for seed in range(4):
            write_run(tmp_path, method, seed, **{entry: one if seed < 2 else other})
    found = shown(tmp_path)
    assert [panel.title for panel in found] == [f"toy/cpu ({word})" if word else "toy/cpu" for word in words]
    for panel in found:
        assert [len(variant.runs) for variant in panel.variants] == [2, 2]


@pytest.mark.parametrize(
    ("entry", "value", "note"),
    [
        ("versions", {"python": "3.11", "torch": "2.15"}, "Runs of different PyTorch are compared here: 2.14; 2.15."),
        ("device", {"type": "cpu", "name": "Other CPU", "threads": 2},
         "Runs of different machines are compared here: Other CPU, 2 threads; Test CPU, 2 threads."),
        ("device", {"type": "cpu", "name": "Test CPU", "threads": 1},
         "Runs of different machines are compared here: Test CPU, 1 thread; Test CPU, 2 threads."),
        ("fingerprint", "e" * 16, "The runs of sgd with sgd were made by 2 versions of its code."),
    ],
)  # fmt: skip
def test_what_is_pooled_is_said(entry: str, value: Any, note: str, tmp_path: Path) -> None:
    write_run(tmp_path, seed=0)
    write_run(tmp_path, seed=1)
    assert shown(tmp_path)[0].notes == []
    write_run(tmp_path, seed=2, **{entry: value})
    assert shown(tmp_path)[0].notes == [note]


@pytest.mark.parametrize("value", [math.nan, math.inf, None])
def test_an_ok_run_without_a_finite_test_metric_is_shown_and_loses(value: float | None, tmp_path: Path) -> None:
    """norm_clip beats sgd by far in five seeds of six; its sixth ended ok and has no test accuracy."""
    for seed in range(6):
        write_run(tmp_path, "sgd", seed, quality=0.2)
        final = {"test_accuracy": 0.9, "validation_accuracy": 0.9}
        lost = {"validation_accuracy": 0.9} | ({} if value is None else {"test_accuracy": value})
        write_run(tmp_path, "norm_clip", seed, final=lost if seed == 5 else final)
    (panel,) = shown(tmp_path)
    final_table, against = panel_tables(panel, tmp_path)
    row = next(row for row in final_table.rows if row[0] == "norm_clip")
    assert row[1].endswith("(n = 5), 1 not finite")
    row = next(row for row in against.rows if row[0] == "norm_clip")
    assert row[2].startswith("0.83 "), "five runs of six beat every one of sgd's"
    assert "better" not in row[3]


def dropped_runs(*runs: tuple[str, int, list[tuple[int, float]]], metric: str = "dropped") -> Experiment:
    rows = [
        {"run_id": name, "step": step, "split": "train", "metric": metric, "value": value}
        for name, _, points in runs
        for step, value in points
    ]
    about = [{"run_id": name, "samples_per_step": size, "final": {}} for name, size, _ in runs]
    return Experiment("toy/cpu", pd.DataFrame(about), pd.DataFrame(rows))


@pytest.mark.parametrize(
    ("runs", "expected"),
    [
        # 6 of 10 samples dropped in each of the last ten steps of 60, logged every 50 and at the end
        ([("a", 10, [(50, 0.0), (60, 6.0)])], 0.1),
        # the same logged every ten steps
        ([("a", 10, [(10, 0.0), (20, 0.0), (30, 0.0), (40, 0.0), (50, 0.0), (60, 6.0)])], 0.1),
        # all of 10 in 10 steps, none of 30 in 30: 100 of 1000 samples
        ([("a", 10, [(10, 10.0)]), ("b", 30, [(30, 0.0)])], 0.1),
        ([("a", 10, [(10, 0.0)])], 0.0),
    ],
)
def test_the_share_dropped_is_of_all_samples_whatever_the_interval_of_logging(
    runs: list[tuple[str, int, list[tuple[int, float]]]], expected: float
) -> None:
    experiment = dropped_runs(*runs)
    assert dropped_share(experiment, experiment.runs) == pytest.approx(expected, rel=1e-12)


def test_nothing_is_known_of_what_was_not_recorded() -> None:
    experiment = dropped_runs(("a", 10, [(10, 1.0)]), metric="loss")
    assert math.isnan(dropped_share(experiment, experiment.runs))
    assert clipped_shares(experiment, experiment.runs) == {}


def test_the_share_clipped_of_older_records_counts_steps_and_not_rows() -> None:
    experiment = dropped_runs(
        ("a", 10, [(50, 0.0), (60, 0.6)]), ("b", 10, [(10, math.nan), (20, 0.5)]), metric="clipped_fraction"
    )
    assert clipped_shares(experiment, experiment.runs) == pytest.approx({"a": 0.1, "b": 0.5})


def test_the_dropped_share_stands_beside_the_clipped_one(tmp_path: Path) -> None:
    folder = write_run(tmp_path, "norm_clip", seed=0, steps=40, every=20)
    rows = pd.read_parquet(folder / "metrics.parquet")
    more = [
        {**rows.iloc[0].to_dict(), "step": step, "split": "train", "metric": metric, "value": value}
        for metric, values in (("dropped", (0.0, 12.8)), ("clipped_fraction", (0.5, 0.5)))
        for step, value in zip((20, 40), values, strict=True)
    ]
    pd.concat([rows, pd.DataFrame(more)], ignore_index=True).to_parquet(folder / "metrics.parquet")
    (panel,) = shown(tmp_path)
    row = panel_tables(panel, tmp_path)[0].rows[0]
    assert row[-3] == "50 %, 5 % dropped"
    assert row[-2] == "1 / 0 / 0"
