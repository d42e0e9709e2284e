"""Statistics over several tasks: runs are grouped by task, and intervals resample the runs within every task."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
from scipy import stats as scipy_stats

from clipbench.analysis.stats import Interval

Floats = npt.NDArray[np.float64]
RESAMPLES = 2000


def pooled_interquartile_mean(groups: Sequence[Floats], level: float = 0.95, seed: int = 0) -> Interval:
    """Mean of the middle half of all values of all groups; percentile bootstrap, stratified by group.

    Agarwal et al. (2021), arXiv:2108.13264, where a group is a task and its values the runs' scores.

    >>> pooled_interquartile_mean([np.array([1.0, 2.0, 3.0, 4.0]), np.array([2.0, 3.0, 9.0, 0.0])]).estimate
    2.5
    """
    estimate = float(scipy_stats.trim_mean(np.concatenate(groups), 0.25))
    samples = _resampled(groups, seed)
    return _interval(estimate, scipy_stats.trim_mean(np.concatenate(samples, axis=1), 0.25, axis=1), level, groups)


def improvement(pairs: Sequence[tuple[Floats, Floats]], level: float = 0.95, seed: int = 0) -> Interval:
    """P(a run of the method has a lower error than one of the base) + ½ P(equal), the mean over the tasks.

    pairs: (errors, errors of the base) of every task. Both are resampled, each by itself. Agarwal et al. (2021).
    """

    def of(errors: Floats, base: Floats) -> Floats:
        wins = (errors[..., :, None] < base[..., None, :]).mean((-1, -2))
        ties = (errors[..., :, None] == base[..., None, :]).mean((-1, -2))
        return np.asarray(wins + 0.5 * ties)

    own, other = [errors for errors, _ in pairs], [base for _, base in pairs]
    estimate = float(np.mean([of(errors, base) for errors, base in pairs]))
    drawn = zip(_resampled(own, seed), _resampled(other, seed + 1), strict=True)
    return _interval(estimate, np.mean([of(errors, base) for errors, base in drawn], axis=0), level, own)


def paired_p(pairs: Sequence[tuple[Mapping[int, float], Mapping[int, float]]]) -> float:
    """Two-sided p of the Wilcoxon signed-rank test on log(error/base) of the seeds that both have, all tasks together.

    NaN below six pairs that differ: there the test can show nothing at the 5 % level. Wilcoxon (1945),
    doi:10.2307/3001968.
    """
    both = [(own[seed], base[seed]) for own, base in pairs for seed in sorted(own.keys() & base.keys())]
    ratios = [round(math.log(value / other), 12) for value, other in both]  # ties are ties, whatever the last bit
    differing = [ratio for ratio in ratios if ratio != 0]
    return float(scipy_stats.wilcoxon(differing).pvalue) if len(differing) >= 6 else math.nan


def holm(p: Mapping[str, float]) -> dict[str, float]:
    """Holm's corrected p values, by name: max over j ≤ i of min(1, (m − j + 1) p_(j)). Holm (1979).

    >>> holm({"a": 0.01, "b": 0.04, "c": 0.03})
    {'a': 0.03, 'c': 0.06, 'b': 0.06}
    """
    corrected: dict[str, float] = {}
    highest = 0.0
    for rank, name in enumerate(sorted(p, key=lambda name: p[name])):
        highest = max(highest, min(1.0, (len(p) - rank) * p[name]))
        corrected[name] = highest
    return corrected


def profile(groups: Sequence[Floats], limits: Sequence[float] | Floats) -> Floats:
    """Share of the runs with a value at or below each limit, the mean over the tasks. Agarwal et al. (2021)."""
    return np.array([np.mean([(group <= limit).mean() for group in groups]) for limit in limits])


def _resampled(groups: Sequence[Floats], seed: int) -> list[Floats]:
    """RESAMPLES draws with replacement of every group, (RESAMPLES, n) each."""
    generator = np.random.default_rng(seed)
    return [group[generator.integers(len(group), size=(RESAMPLES, len(group)))] for group in groups]


def _interval(estimate: float, drawn: Floats, level: float, groups: Sequence[Floats]) -> Interval:
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return Interval(estimate, float(low), float(high), sum(map(len, groups)))
