"""Steps and seconds to a target on the validation split, in the terms of `survival.py`."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

from clipbench.analysis import stats
from clipbench.analysis.groups import BASELINE, Panel, Variant
from clipbench.analysis.load import final
from clipbench.analysis.timing import StepTimes


class Target(NamedTuple):
    """A validation metric ("accuracy" or "loss"), the value to reach, and where the value comes from, in
    words."""

    metric: str
    value: float
    higher_is_better: bool
    origin: str


def find_target(panel: Panel, baseline: str = BASELINE, value: float | None = None) -> Target | None:
    """`value`, or what the baseline ends with on average, of validation accuracy if there is one and else
    loss.

    None where nothing was evaluated on the validation split more than once, or there is no baseline to set
    the target.
    """
    rows = panel.experiment.metrics
    ids = {run for v in panel.variants for run in v.runs["run_id"]}
    rows = rows[(rows["split"] == "validation") & rows["run_id"].isin(ids)]
    metric = next((m for m in ("accuracy", "loss") if (rows["metric"] == m).any()), None)
    if metric is None or rows["step"].nunique() < 2:
        return None
    if value is not None:
        return Target(metric, value, metric == "accuracy", "given")
    bases = [v for v in panel.variants if v.method == baseline]
    base = max(bases, key=lambda v: len(v.runs), default=None)
    if base is None:
        return None
    ends = final(base.runs[base.runs["status"] == "ok"], f"validation_{metric}").dropna()
    if ends.empty or not math.isfinite(ends.mean()):
        return None
    return Target(metric, float(ends.mean()), metric == "accuracy", f"what {base.label} ends with on average")


def to_target(
    variant: Variant, panel: Panel, goal: Target, times: StepTimes, axis: Literal["step", "seconds"]
) -> stats.Times | None:
    """Steps or seconds until the variant's runs reach `goal`; None without a finished run, or without a time.

    Runs that ended ok or diverged count; a failed or unfinished one says nothing about the method. The
    horizon is the length of a full run: its steps, or those times the calibrated step, or the longest raw
    training time.
    """
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
