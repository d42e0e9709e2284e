"""Centred heavy-tailed draws in float64, skewed or not; numpy, for studies that need nothing else.

An index a means that moments of order below a are finite, those of order a and above are not. All means are zero.
"""

from __future__ import annotations

import math
from typing import Literal, get_args

import numpy as np

from clipbench.config.checks import one_of, require

Tail = Literal["pareto", "alpha_stable", "student_t"]


def pareto(shape: tuple[int, ...], index: float, draw: np.random.Generator) -> np.ndarray:
    """One-sided Pareto less its mean: P(X > t) = t^{−a} for t ≥ 1, E X = a / (a − 1)."""
    uniform = 1.0 - draw.random(shape)  # in (0, 1]
    return uniform ** (-1.0 / index) - index / (index - 1.0)


def alpha_stable(shape: tuple[int, ...], index: float, draw: np.random.Generator) -> np.ndarray:
    """α-stable, wholly skewed to the right: characteristic function exp(−|t|^α (1 − i sign(t) tan(πα/2))).

    X = S sin(α(V + B)) / cos(V)^{1/α} · (cos(V − α(V + B)) / W)^{(1−α)/α}, V uniform on (−π/2, π/2), W exponential,
    B = arctan(tan(πα/2)) / α, S = (1 + tan²(πα/2))^{1/(2α)} (Chambers, Mallows, Stuck, J. Am. Stat. Assoc. 71, 1976,
    in Weron's form). The mean is zero as α > 1.
    """
    tangent = math.tan(math.pi * index / 2)
    shift, scale = math.atan(tangent) / index, (1 + tangent**2) ** (1 / (2 * index))
    angle = math.pi * (draw.random(shape) - 0.5)
    wait = np.maximum(draw.standard_exponential(shape), np.finfo(float).tiny)
    turned = index * (angle + shift)
    # cos(V) cannot be 0 for a V of at most 53 bits; cos(V − α(V + B)) may round to a tiny negative number.
    ratio = np.maximum(np.cos(angle - turned), np.finfo(float).tiny) / wait
    power = (1 - index) / index
    return np.asarray(scale * np.sin(turned) / np.cos(angle) ** (1 / index) * ratio**power)


def student_t(shape: tuple[int, ...], index: float, draw: np.random.Generator) -> np.ndarray:
    """Student's t with `index` degrees of freedom: symmetric."""
    return draw.standard_t(index, shape)


SAMPLERS = {"pareto": pareto, "alpha_stable": alpha_stable, "student_t": student_t}


def check(noise: str, index: float) -> None:
    """Raise ValueError for an unknown noise, or an index outside (1, 2): the mean must exist."""
    one_of("noise", noise, get_args(Tail))
    require(1 < index < 2, "index", "in (1, 2)", index)
