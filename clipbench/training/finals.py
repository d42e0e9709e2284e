"""What a training run came to: figures that do not depend on how often it was logged."""

from __future__ import annotations

import math
from collections.abc import Sequence

from clipbench.runs.finals import best_metrics, final_metrics
from clipbench.runs.job import Row


def finals(rows: Sequence[Row], train_loss: float, status: str) -> dict[str, dict[str, float]]:
    """Final and best metrics: the last evaluation's, `train_loss` (the mean of the last 25 steps), and over all steps
    the share clipped.

    A logged mean of anything else is over the steps since the row before it, so it stays in the rows. Where a run
    diverged nothing is final: when that is seen depends on the intervals, so its metrics are NaN.
    """
    final = {
        name: value
        for name, value in final_metrics(rows).items()
        if not name.startswith("train_") or name == "train_share_clipped"
    }
    if any(row["step"] > 0 for row in rows):
        final["train_loss"] = train_loss
    if status == "diverged":
        final = {name: value if name == "train_share_clipped" else math.nan for name, value in final.items()}
    return {"final": final, "best": best_metrics(rows)}
