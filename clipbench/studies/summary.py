"""Numbers of a sample over repetitions: quantiles that the sample can carry, their jackknife, slopes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

# (1 − δ) for δ from 0.5 to 1e-3.
LEVELS = (0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.998, 0.999)
BEYOND = 10  # a quantile is given where at least this many of the repetitions lie beyond it


def carried(levels: Sequence[float], repetitions: int) -> list[float]:
    """The levels with at least ten repetitions beyond."""
    return [level for level in levels if (1 - level) * repetitions >= BEYOND - 1e-6]


def left_out(values: np.ndarray, groups: int) -> Iterator[np.ndarray]:
    """The values (…, R) without group 0, without group 1, …: R splits into `groups` runs of equal length.

    A statistic t_i of each gives the delete-group jackknife's standard error √((G − 1)/G Σ (t_i − mean t)²).
    """
    size = values.shape[-1] // groups
    for group in range(groups):
        yield np.delete(values, np.s_[group * size : (group + 1) * size], axis=-1)


def slope(x: np.ndarray, y: np.ndarray) -> float:
    """The least-squares slope of log y against log x; NaN where there are fewer than two points."""
    if len(x) < 2:
        return float("nan")
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])
