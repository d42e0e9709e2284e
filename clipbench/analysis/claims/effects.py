"""Effects of one method over another: paired by seed, on the scale that the metric's bounds ask for."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

from clipbench.analysis.stats import Interval, paired_difference

Scale = Literal["difference", "log"]


def paired_effect(
    values: Mapping[int, float], base: Mapping[int, float], scale: Scale = "difference", level: float = 0.95
) -> Interval:
    """Mean of value − base over common seeds, or of log(value/base), with its interval at `level`.

    `log` is for losses, which are bounded by 0 and vary by factors: −0.1 is a loss lower by about 10 %. Raises
    ValueError where a value on that scale is not > 0.
    """
    if scale == "log":
        bad = [x for x in (*values.values(), *base.values()) if not x > 0]
        if bad:
            raise ValueError(f"values must be > 0 on a log scale, got {bad[0]}")
        values, base = ({seed: math.log(x) for seed, x in pairs.items()} for pairs in (values, base))
    return paired_difference(values, base, level)


def bonferroni(alternatives: int) -> float:
    """The level of each of `alternatives` intervals where any of them may decide: 1 − 0.05/m."""
    if alternatives < 1:
        raise ValueError(f"alternatives must be >= 1, got {alternatives}")
    return 1 - 0.05 / alternatives
