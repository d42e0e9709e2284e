"""Steps and seconds to a target on the validation split, in the terms of `survival.py`."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

from clipbench.analysis import stats
from clipbench.analysis.groups import Panel, Variant
from clipbench.analysis.load import final
from clipbench.analysis.timing import StepTimes

PROGRESS = 0.9


class Target(NamedTuple):
    """A validation metric ("accuracy" or "loss"), the value to reach, and where the value comes from, in
    words."""

    metric: str
    value: float
    higher_is_better: bool
    origin: str


def find_target(panel: Panel, value: float | None = None) -> Target | None:
    """`value`, or `PROGRESS` of the way from the start to the best variant's mean end, on the validation
    split.

    The metric is accuracy where there is one and else loss. The rule treats all variants alike: the start is
    the mean of all runs' first evaluations. None where there are no two evaluations, or no variant ended
    better than the start.
    """
    rows = panel.experiment.metrics
    ids = {run for v in panel.variants for run in v.runs["run_id"]}
    rows = rows[(rows["split"] == "validation") & rows["run_id"].isin(ids)]
    metric = next((m for m in ("accuracy", "loss") if (rows["metric"] == m).any()), None)
    rows = rows[rows["metric"] == metric]
    if metric is None or rows["step"].nunique() < 2:
        return None
    higher = metric == "accuracy"
    if value is not None:
        return Target(metric, value, higher, "given")
    start = rows.sort_values("step").drop_duplicates("run_id")["value"].mean()
    ends = [final(v.runs[v.runs["status"] == "ok"], f"validation_{metric}").mean() for v in panel.variants]
    finite = [end for end in ends if math.isfinite(end)]
    best = max(finite, default=math.nan) if higher else min(finite, default=math.nan)
    if not (best > start if higher else best < start):
        return None
    origin = f"{PROGRESS:.0%} of the way from the start to the best method's mean end".replace("%", " %")
    return Target(metric, float(start + PROGRESS * (best - start)), higher, origin)


def to_target(
    variant: Variant, panel: Panel, goal: Target, times: StepTimes, axis: Literal["step", "seconds"]
) -> stats.Times | None:
    """Steps or seconds until the variant's runs reach `goal`; None without a finished run, or without a time.

    Runs that ended ok or diverged count; a failed or unfinished one says nothing about the method. The
    horizon is the length of a full run: its steps, or those times the calibrated step, or the longest raw
    training time. Runs that went together have no seconds, unless calibrated.
    """
    if axis == "seconds" and math.isnan(times.seconds[variant.label]):
        return None
    runs = variant.runs[variant.runs["status"].isin(["ok", "diverged"])]
    curves = [panel.experiment.curve(run, "validation", goal.metric) for run in runs["run_id"]]
    if not curves:
        return None
    steps = float(runs["steps"].max())
    if axis == "step":
        xs, horizon = [c["step"] for c in curves], steps
    elif times.calibrated:
        xs, horizon = (
            [c["step"] * times.seconds[variant.label] for c in curves],
            steps * times.seconds[variant.label],
        )
    else:
        xs, horizon = [c["train_seconds"] for c in curves], _longest(variant, steps)
    if not (math.isfinite(horizon) and horizon > 0):
        return None
    pairs = [(x.to_numpy(float), c["value"].to_numpy(float)) for x, c in zip(xs, curves, strict=True)]
    return stats.time_to_target(pairs, goal.value, horizon, goal.higher_is_better)


def _longest(variant: Variant, steps: float) -> float:
    """Raw training seconds of the variant's longest full run; of a shorter one, extended to the full number
    of steps."""
    longest = 0.0
    for seconds, done in zip(variant.runs["seconds"], variant.runs["steps_done"], strict=True):
        train = seconds.get("train")
        if isinstance(train, int | float) and done and done > 0:
            longest = max(longest, float(train) * (1.0 if done >= steps else steps / float(done)))
    return longest
