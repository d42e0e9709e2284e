"""What a run came to: the metrics by which runs are compared, from its rows."""

from __future__ import annotations

import math
from collections.abc import Iterable

from clipbench.runs.job import Row


def final_metrics(rows: Iterable[Row]) -> dict[str, float]:
    """The last value of every metric, by "<split>_<metric>"; per-layer figures are left to the rows."""
    return {f"{row['split']}_{row['metric']}": row["value"] for row in rows if "/" not in row["metric"]}


def best_metrics(rows: Iterable[Row]) -> dict[str, float]:
    """The best finite validation value of every metric: smallest loss, largest of the others."""
    best: dict[str, float] = {}
    for row in rows:
        name, value = f"{row['split']}_{row['metric']}", row["value"]
        if row["split"] != "validation" or not math.isfinite(value):
            continue
        pick = min if row["metric"] == "loss" else max
        best[name] = pick(best.get(name, value), value)
    return best
