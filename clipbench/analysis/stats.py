"""Statistics of the comparison: intervals, paired differences, robust means, censored times, profiles.

Conventions, the same everywhere:
- one number per run (a seed), never the points of one curve as if they were independent;
- 95 % intervals; Student's t below `BOOTSTRAP_FROM` values and the BCa bootstrap from there on, because the
  bootstrap's real coverage is 0.79 at n = 3 and 0.89 at n = 10;
- fewer than `VERDICT_FROM` seeds give an interval but no verdict;
- a diverged run is the worst possible outcome (an infinite loss, a target never reached), not a missing
  value.

Censored times are in `survival.py` and are offered here too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import stats as scipy_stats

from clipbench.analysis.survival import Times as Times
from clipbench.analysis.survival import censored_times as censored_times
from clipbench.analysis.survival import first_crossing as first_crossing
from clipbench.analysis.survival import steps_to_target as steps_to_target
from clipbench.analysis.survival import time_to_target as time_to_target

BOOTSTRAP_FROM = 20
VERDICT_FROM = 5
RESAMPLES = 9999

Floats = npt.NDArray[np.float64]
Verdict = Literal["better", "worse", "no difference shown", "no verdict"]


class Interval(NamedTuple):
    """An estimate with its interval; `low` and `high` are NaN where one value allows none. n counts values or
    pairs."""

    estimate: float
    low: float
    high: float
    n: int


def _finite(values: Sequence[float] | Floats, name: str = "values") -> Floats:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or not np.isfinite(array).all():
        raise ValueError(f"{name} must be one-dimensional and finite, got {values!r}")
    return array


def _level(level: float) -> float:
    if not 0 < level < 1:
        raise ValueError(f"level must be in (0, 1), got {level}")
    return level


def _bootstrap(values: Floats, statistic: Callable[..., Any], level: float, seed: int) -> tuple[float, float]:
    """BCa interval; a sample without spread has an interval of width zero (BCa is undefined there)."""
    if np.ptp(values) == 0:
        return float(values[0]), float(values[0])
    result = scipy_stats.bootstrap(
        (values,),
        statistic,
        n_resamples=RESAMPLES,
        confidence_level=level,
        method="BCa",
        rng=np.random.default_rng(seed),
    )
    return float(result.confidence_interval.low), float(result.confidence_interval.high)


def mean_interval(values: Sequence[float] | Floats, level: float = 0.95, seed: int = 0) -> Interval:
    """Mean with its interval: x̄ ± t_{n−1,(1+level)/2} s/√n below n = 20, BCa bootstrap of the mean from
    there on.

    Student (1908), doi:10.2307/2331554; Efron (1987), doi:10.1080/01621459.1987.10478410, by
    scipy.stats.bootstrap. `seed` fixes the resampling. No values give NaN and n = 0; one value gives no
    bounds (NaN). Raises ValueError for a non-finite value: what a diverged run means is the caller's
    decision.
    """
    array, n = _finite(values), len(values)
    _level(level)
    if n == 0:
        return Interval(math.nan, math.nan, math.nan, 0)
    mean = float(array.mean())
    if n == 1:
        return Interval(mean, math.nan, math.nan, 1)
    if n < BOOTSTRAP_FROM:
        half = float(scipy_stats.t.ppf((1 + level) / 2, n - 1) * array.std(ddof=1) / math.sqrt(n))
        return Interval(mean, mean - half, mean + half, n)
    return Interval(mean, *_bootstrap(array, np.mean, level, seed), n)


def paired_difference(
    values: Mapping[int, float], base: Mapping[int, float], level: float = 0.95, seed: int = 0
) -> Interval:
    """Mean of d_s = values[s] − base[s] over the seeds s of both, with the interval of `mean_interval` on the
    d_s.

    Runs with the same seed share initial weights and batches, so the seed's own luck cancels in d_s: the
    paired t-test, Student (1908). n counts the pairs; no common seed gives NaN and n = 0.
    """
    common = sorted(set(values) & set(base))
    return mean_interval([values[s] - base[s] for s in common], level, seed)


def interquartile_mean(values: Sequence[float] | Floats, level: float = 0.95, seed: int = 0) -> Interval:
    """Mean of the middle half: the ⌊n/4⌋ smallest and the ⌊n/4⌋ largest values are left out.

    With g = ⌊n/4⌋, h = n − 2g and s_w² = Σ (w_i − w̄)²/(n − 1) of the winsorised sample (each left-out value
    replaced by its nearest kept one), the interval below n = 20 is IQM ± t_{h−1} · s_w √n/h; for g = 0 that
    is Student's. Statistic: Agarwal et al. (2021), arXiv:2108.13264; interval: Tukey and McLaughlin (1963),
    Sankhyā A 25. BCa from 20 on.
    """
    array, n = np.sort(_finite(values)), len(values)
    _level(level)
    if n < 2:
        return mean_interval(array, level, seed)
    cut = n // 4
    kept = n - 2 * cut
    estimate = float(array[cut : n - cut].mean())
    if n >= BOOTSTRAP_FROM:
        return Interval(estimate, *_bootstrap(array, _trimmed_mean, level, seed), n)
    spread = np.clip(array, array[cut], array[n - cut - 1]).std(ddof=1)
    half = float(scipy_stats.t.ppf((1 + level) / 2, kept - 1) * spread * math.sqrt(n) / kept)
    return Interval(estimate, estimate - half, estimate + half, n)


def _trimmed_mean(values: Floats, axis: int = -1) -> Floats:
    return np.asarray(scipy_stats.trim_mean(values, 0.25, axis=axis))


def probability_of_improvement(
    values: Sequence[float], base: Sequence[float], higher_is_better: bool = True, level: float = 0.95
) -> Interval:
    """θ = P(X better than Y) + ½ P(X = Y) of one run of each: the Mann–Whitney U over all pairs, divided by
    n·m.

    Infinite values are allowed: a diverged run is worse than every other. The interval solves
    |θ̂ − θ| = z √V(θ), V(θ) = θ(1−θ)/(nm) · [1 + ((n+m)/2 − 1)((1−θ)/(2−θ) + θ/(1+θ))], so that it has a
    width even at θ̂ = 0 or 1. It takes the two samples as independent. n counts the runs of both.
    Statistic: Agarwal et al. (2021), arXiv:2108.13264; interval: Newcombe (2006), method 5,
    doi:10.1002/sim.2324.
    """
    x, y = np.asarray(values, dtype=np.float64), np.asarray(base, dtype=np.float64)
    _level(level)
    if np.isnan(x).any() or np.isnan(y).any():
        raise ValueError(f"values must hold no NaN, as base, got {values!r} and {base!r}")
    if not len(x) or not len(y):
        return Interval(math.nan, math.nan, math.nan, len(x) + len(y))
    if not higher_is_better:
        x, y = -x, -y
    wins = (x[:, None] > y[None, :]).sum() + 0.5 * (x[:, None] == y[None, :]).sum()
    theta = float(wins / (len(x) * len(y)))
    z = float(scipy_stats.norm.ppf((1 + level) / 2))
    low = 0.0 if theta == 0 else _score_bound(theta, 0.0, theta, z, len(x), len(y))
    high = 1.0 if theta == 1 else _score_bound(theta, 1.0, theta, z, len(x), len(y))
    return Interval(theta, low, high, len(x) + len(y))


def _score_bound(estimate: float, far: float, near: float, z: float, n: int, m: int) -> float:
    """The θ between `far` and `near` where |estimate − θ| = z √V(θ), by bisection: left of it the gap is
    larger."""
    for _ in range(80):
        middle = (far + near) / 2
        shape = (1 - middle) / (2 - middle) + middle / (1 + middle)
        variance = middle * (1 - middle) / (n * m) * (1 + ((n + m) / 2 - 1) * shape)
        if abs(estimate - middle) > z * math.sqrt(variance):
            far = middle
        else:
            near = middle
    return (far + near) / 2


def performance_profile(
    costs: Mapping[str, Mapping[str, float]], factors: Sequence[float]
) -> dict[str, npt.NDArray[np.float64]]:
    """ρ_s(f) = share of the problems p with c_{p,s} ≤ f · min_s' c_{p,s'}; one array of the length of
    `factors` a method.

    `costs[method][problem]` is a cost > 0 (seconds or steps to target), inf where the target was never
    reached; an infinite cost is within no factor, also where no method reached it. Dolan and Moré (2002),
    doi:10.1007/s101070100263. Raises ValueError where the methods were not given the same problems, or a cost
    is not > 0.
    """
    methods = list(costs)
    problems = sorted(costs[methods[0]]) if methods else []
    for method in methods:
        if sorted(costs[method]) != problems:
            raise ValueError(f"costs must hold the same problems for all, got {sorted(costs[method])} for {method}")
    table = np.array([[costs[m][p] for p in problems] for m in methods], dtype=np.float64).reshape(
        len(methods), len(problems)
    )
    if np.isnan(table).any() or (table <= 0).any():
        raise ValueError(f"costs must be > 0, got {table.tolist()}")
    best = np.where(np.isfinite(table).any(axis=0), table.min(axis=0, initial=np.inf), 1.0)
    ratios = table / best
    return {m: np.array([(ratios[i] <= f).mean() for f in factors]) for i, m in enumerate(methods)}


def verdict(
    difference: Interval, higher_is_better: bool, diverged: int = 0, base_diverged: int = 0
) -> tuple[Verdict, str]:
    """What a paired difference allows to say, and why not more (an empty string where nothing is held back).

    No verdict below `VERDICT_FROM` pairs. An interval without zero decides, unless runs that diverged, and so
    are missing from the pairs, speak against it: "better" is withheld where the method diverged more often
    than the base, "worse" where the base did.
    """
    if difference.n < VERDICT_FROM:
        return "no verdict", f"n < {VERDICT_FROM}"
    low, high = (difference.low, difference.high) if higher_is_better else (-difference.high, -difference.low)
    if low > 0:
        return ("better", "") if diverged <= base_diverged else ("no verdict", "diverged more often")
    if high < 0:
        return ("worse", "") if base_diverged <= diverged else ("no verdict", "baseline diverged more often")
    return "no difference shown", ""
