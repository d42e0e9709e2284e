"""Curves over seeds: the mean and its 95 % band at the steps that all runs of a variant have."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd

from clipbench.analysis.bounded import band
from clipbench.analysis.groups import Panel, Variant

Floats = npt.NDArray[np.float64]


class Curve(NamedTuple):
    """Mean and band (NaN for one run) at `step`, with the mean raw training `seconds` there; arrays of one
    length."""

    step: Floats
    seconds: Floats
    mean: Floats
    low: Floats
    high: Floats
    n: int


class Broken(NamedTuple):
    """One diverged run: its own curve, up to the last finite value."""

    step: Floats
    seconds: Floats
    value: Floats


def mean_curve(panel: Panel, variant: Variant, split: str, metric: str) -> Curve | None:
    """Mean over the runs that ended ok, at the steps that each of them has; None without such a run or step.

    The band is the interval of `metric_interval` at each step by itself (pointwise, not for the whole curve).
    """
    ok = variant.runs[variant.runs["status"] == "ok"]["run_id"]
    curves = [panel.experiment.curve(run, split, metric).set_index("step") for run in ok]
    curves = [c[~c.index.duplicated(keep="last")] for c in curves if len(c)]
    if not curves:
        return None
    values = pd.concat([c["value"] for c in curves], axis=1, join="inner").sort_index()
    seconds = pd.concat([c["train_seconds"] for c in curves], axis=1, join="inner").sort_index().mean(axis=1)
    values = values[np.isfinite(values.to_numpy(float)).all(axis=1)]
    if values.empty:
        return None
    table = values.to_numpy(float)
    low, high = band(table, metric)
    at = seconds.loc[values.index].to_numpy(float)
    return Curve(values.index.to_numpy(float), at, table.mean(axis=1), low, high, table.shape[1])


def broken_curves(panel: Panel, variant: Variant, split: str, metric: str) -> list[Broken]:
    """The curves of the variant's diverged runs, each up to its last finite value; those without one are left
    out."""
    result = []
    for run in variant.runs[variant.runs["status"] == "diverged"]["run_id"]:
        curve = panel.experiment.curve(run, split, metric)
        curve = curve[np.isfinite(curve["value"].to_numpy(float))]
        if len(curve):
            result.append(Broken(*(curve[c].to_numpy(float) for c in ("step", "train_seconds", "value"))))
    return result
