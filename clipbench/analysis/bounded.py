"""Intervals that stay within what a metric can be: accuracies in [0, 1], losses at 0 or above.

Student's t interval of the mean is laid on the scale where the bound is infinitely far (logit for a share, log for what
is positive) by the delta method, and taken back: logit(x̄) ± t s/(x̄(1 − x̄)√n), log(x̄) ± t s/(x̄√n). The estimate
stays the arithmetic mean; for small spreads the interval is the ordinary one. Agresti (2013), Categorical Data
Analysis, §1.3 and §16.1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy import special
from scipy import stats as scipy_stats

from clipbench.analysis.stats import BOOTSTRAP_FROM, Interval, mean_interval

Floats = npt.NDArray[np.float64]


def is_share(metric: str) -> bool:
    """Whether a metric is a share of 1 (an accuracy, a fraction clipped)."""
    return metric.endswith(("accuracy", "fraction"))


def is_positive(metric: str) -> bool:
    """Whether a metric cannot fall below 0 (a loss, an error, a norm, a time)."""
    return metric.endswith(("loss", "error", "norm", "seconds"))


def metric_interval(values: Sequence[float] | Floats, metric: str, level: float = 0.95) -> Interval:
    """`mean_interval` of `metric`, with bounds within what the metric can be.

    From n = 20 on the bootstrap's bounds lie among the values, so nothing is left to do. A mean that lies on the bound
    itself (all runs at accuracy 0) or values beyond it have the ordinary interval. Raises ValueError where a value is
    not finite.
    """
    plain = mean_interval(values, level)
    if plain.n < 2 or plain.n >= BOOTSTRAP_FROM:
        return plain
    half = plain.high - plain.estimate
    low, high = (float(bound) for bound in within(np.array(plain.estimate), np.array(half), metric))
    return Interval(plain.estimate, low, high, plain.n)


def within(mean: Floats, half: Floats, metric: str) -> tuple[Floats, Floats]:
    """Bounds of intervals mean ± half (arrays of one shape), moved to the metric's own scale and back."""
    if is_share(metric):
        inside = (mean > 0) & (mean < 1)
        safe = np.where(inside, mean, 0.5)
        centre, width = special.logit(safe), half / (safe * (1 - safe))
        low, high = special.expit(centre - width), special.expit(centre + width)
    elif is_positive(metric):
        inside = mean > 0
        safe = np.where(inside, mean, 1.0)
        with np.errstate(over="ignore"):
            low, high = safe * np.exp(-half / safe), safe * np.exp(half / safe)
    else:
        return mean - half, mean + half
    return np.where(inside, low, mean - half), np.where(inside, high, mean + half)


def band(table: Floats, metric: str) -> tuple[Floats, Floats]:
    """The bounds of `metric_interval` of each row of (steps, n), all rows at once; NaN for one run."""
    n = table.shape[1]
    if n < 2:
        nothing = np.full(len(table), math.nan)
        return nothing, nothing
    if n < BOOTSTRAP_FROM:
        half = scipy_stats.t.ppf(0.975, n - 1) * table.std(axis=1, ddof=1) / math.sqrt(n)
        return within(table.mean(axis=1), half, metric)
    intervals = [mean_interval(row) for row in table]
    return np.array([i.low for i in intervals]), np.array([i.high for i in intervals])
