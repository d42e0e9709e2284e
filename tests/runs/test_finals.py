"""What a run came to, worked out by hand from few rows; and whose a checkpoint is."""

from __future__ import annotations

import math

from clipbench.runs.checkpoint import LAYOUT, foreign, pack
from clipbench.runs.finals import best_metrics, final_metrics, share_clipped
from clipbench.runs.job import Row


def row(step: int, split: str, metric: str, value: float) -> Row:
    return {"step": step, "split": split, "metric": metric, "value": value}


ROWS = [
    row(10, "train", "loss", 3.0),
    row(10, "validation", "loss", 2.5),
    row(10, "validation", "accuracy", 0.25),
    row(10, "validation", "layer/sigma_max", 9.0),
    row(20, "train", "loss", 2.0),
    row(20, "validation", "loss", 1.5),
    row(20, "validation", "accuracy", 0.5),
    row(20, "test", "accuracy", 0.9),
    row(30, "train", "loss", 2.25),
    row(30, "validation", "loss", 1.75),
    row(30, "validation", "accuracy", 0.375),
]


def test_final_metrics_are_the_last_of_every_curve_without_layers() -> None:
    assert final_metrics(iter(ROWS)) == {
        "train_loss": 2.25, "validation_loss": 1.75, "validation_accuracy": 0.375, "test_accuracy": 0.9,
    }  # fmt: skip


def test_best_metrics_are_of_the_validation_split_alone_and_finite() -> None:
    lost = [row(40, "validation", name, value) for name in ("loss", "accuracy") for value in (math.nan, -math.inf)]
    assert best_metrics([*ROWS, *lost]) == {
        "validation_loss": 1.5, "validation_accuracy": 0.5, "validation_layer/sigma_max": 9.0,
    }  # fmt: skip
    assert best_metrics(lost) == {}


def test_the_share_clipped_counts_steps_and_not_rows() -> None:
    rows = [
        row(2, "train", "clipped_fraction", 1.0),
        row(10, "train", "clipped_fraction", 0.5),
        row(10, "train", "clipped_fraction", 0.0),  # of the same step once more: no step lies between
        row(10, "validation", "clipped_fraction", 1.0),
        row(10, "train", "loss", 1.0),
        row(4, "train", "sample_clipped_fraction", 0.25),
    ]
    assert share_clipped(iter(rows)) == {"clipped_fraction": (2 * 1.0 + 8 * 0.5) / 10, "sample_clipped_fraction": 0.25}
    assert final_metrics(rows)["train_share_clipped"] == 0.6
    assert "train_share_clipped" not in final_metrics(ROWS)


def test_a_checkpoint_says_whose_it_is() -> None:
    content = pack("abc", {"step": 3}, recorder={"rows": 1})
    assert content == {"layout": LAYOUT, "run_id": "abc", "state": {"step": 3}, "recorder": {"rows": 1}}
    assert foreign(content, "abc") is None
    assert foreign(content, "other") == "run_id abc for other"
    assert foreign(content | {"layout": 1}, "abc") == f"layout 1 for {LAYOUT}"
    assert foreign({}, "abc") == f"layout None for {LAYOUT}, run_id None for abc"
