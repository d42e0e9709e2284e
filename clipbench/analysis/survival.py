"""Time to a target with censoring: runs that never reach it are counted as such, neither dropped nor given a
number."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import stats as scipy_stats

Floats = npt.NDArray[np.float64]


class Times(NamedTuple):
    """Times to a target of n runs (in the unit of what was put in), of which `reached` got there.

    `median` is the Kaplan–Meier median, inf where less than half of the runs reach the target; `low` and
    `high` bound it (inf where the data do not bound it). `restricted_mean` is the mean of min(time, horizon).
    """

    median: float
    low: float
    high: float
    restricted_mean: float
    horizon: float
    n: int
    reached: int


def first_crossing(
    x: Sequence[float] | Floats,
    values: Sequence[float] | Floats,
    target: float,
    higher_is_better: bool = False,
) -> float | None:
    """The first x whose value is at least as good as `target`, None where there is none. NaN is never good
    enough.

    Evaluations come every so many steps: what is returned is the first evaluation that meets the target, an
    upper bound of the true crossing. There is no interpolation.
    """
    at, curve = np.asarray(x, dtype=np.float64), np.asarray(values, dtype=np.float64)
    if at.shape != curve.shape:
        raise ValueError(f"values must have the shape of x, got {curve.shape} and {at.shape}")
    met = curve >= target if higher_is_better else curve <= target
    return float(at[met].min()) if met.any() else None


def censored_times(times: Sequence[float], reached: Sequence[bool], horizon: float, level: float = 0.95) -> Times:
    """Kaplan–Meier summary of times, of which some are only known to be longer (`reached` False: censored
    there).

    S(t) = Π_{t_i ≤ t} (1 − d_i/n_i), d_i runs reaching the target at t_i of the n_i still under way.
    median = min{t : S(t) ≤ ½}; its bounds are where the log-log band of S crosses ½;
    restricted mean = ∫_0^horizon S(t) dt, where S stays at its last value after the last time.
    Kaplan and Meier (1958), doi:10.2307/2281868, by scipy.stats.ecdf; bounds: Brookmeyer and Crowley (1982),
    doi:10.2307/2530286. Raises ValueError for lengths that differ or a time outside [0, horizon].
    """
    at, event = np.asarray(times, dtype=np.float64), np.asarray(reached, dtype=bool)
    if at.shape != event.shape:
        raise ValueError(f"reached must have one entry per time, got {event.shape} and {at.shape}")
    if not ((at >= 0) & (at <= horizon)).all():
        raise ValueError(f"times must lie in [0, horizon = {horizon}], got {at.tolist()}")
    n, count = len(at), int(event.sum())
    if count == 0:
        return Times(math.inf, math.inf, math.inf, float(horizon) if n else math.nan, float(horizon), n, 0)
    survival = scipy_stats.ecdf(scipy_stats.CensoredData(uncensored=at[event], right=at[~event])).sf
    with warnings.catch_warnings():  # log(-log(S)) is undefined at S = 1 and S = 0
        warnings.simplefilter("ignore", RuntimeWarning)
        band = survival.confidence_interval(confidence_level=level, method="log-log")
    knots, left = survival.quantiles, survival.probabilities
    # Where the band is undefined (S = 0) it has collapsed onto S itself.
    lower = np.where(np.isfinite(band.low.probabilities), band.low.probabilities, left)
    upper = np.where(np.isfinite(band.high.probabilities), band.high.probabilities, left)
    median, low, high = (_first_at_half(knots, curve) for curve in (left, lower, upper))
    edges = np.concatenate([[0.0], knots, [horizon]])
    mean = float((np.diff(edges) * np.concatenate([[1.0], left])).sum())
    return Times(median, min(low, median), max(high, median), mean, float(horizon), n, count)


def _first_at_half(knots: Floats, survival: Floats) -> float:
    # The product of (1 - d/n) is ½ only up to rounding.
    below = np.nonzero(survival <= 0.5 + 1e-12)[0]
    return float(knots[below[0]]) if len(below) else math.inf


def time_to_target(
    curves: Sequence[tuple[Sequence[float] | Floats, Sequence[float] | Floats]],
    target: float,
    horizon: float,
    higher_is_better: bool = False,
    level: float = 0.95,
) -> Times:
    """`censored_times` of the runs' `first_crossing`s; each curve is (seconds, values) of one run.

    Every run had `horizon` seconds, a diverged one too: it will never reach the target, so it is censored at
    the horizon and not where it broke off (which would take its chances for those of the others).
    """
    crossings = [first_crossing(x, values, target, higher_is_better) for x, values in curves]
    reached = [c is not None and c <= horizon for c in crossings]
    times = [c if c is not None and c <= horizon else horizon for c in crossings]
    return censored_times(times, reached, horizon, level)


def steps_to_target(
    curves: Sequence[tuple[Sequence[float] | Floats, Sequence[float] | Floats]],
    target: float,
    horizon: float,
    higher_is_better: bool = False,
    level: float = 0.95,
) -> Times:
    """`time_to_target` in optimizer steps: each curve is (steps, values), `horizon` the number of steps of a
    full run."""
    return time_to_target(curves, target, horizon, higher_is_better, level)
