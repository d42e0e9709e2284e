"""What a run came to: the metrics by which runs are compared, from its rows."""

from __future__ import annotations

import math
from collections.abc import Iterable

from clipbench.runs.job import Row


def final_metrics(rows: Iterable[Row]) -> dict[str, float]:
    """The last value of every metric, by "<split>_<metric>"; per-layer figures are left to the rows."""
    known = list(rows)
    final = {f"{row['split']}_{row['metric']}": row["value"] for row in known if "/" not in row["metric"]}
    shares = share_clipped(known)
    return final | ({"train_share_clipped": max(shares.values())} if shares else {})


def share_clipped(rows: Iterable[Row]) -> dict[str, float]:
    """Mean over all steps of each clipped share (of samples, micro-batches, or what the clipper counts), by its name.

    A row holds the mean since the row before it, so rows count by the steps between them.
    """
    sums: dict[str, float] = {}
    last: dict[str, int] = {}
    for row in rows:
        name = row["metric"]
        if row["split"] == "train" and name.endswith("clipped_fraction") and row["step"] > last.get(name, 0):
            sums[name] = sums.get(name, 0.0) + row["value"] * (row["step"] - last.get(name, 0))
            last[name] = row["step"]
    return {name: total / last[name] for name, total in sums.items()}


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
