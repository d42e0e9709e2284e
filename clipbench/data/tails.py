"""Symmetric heavy-tailed draws, as batched tensor operations from one torch.Generator, on its device.

An `index` a means P(|x| > t) ~ t^{-a}: moments below order a are finite, moments of order a and above are not
(for alpha_stable with a < 2; a = 2 is Gaussian). Uniform draws are made in float64, whose grain of 2^-53
leaves the tail intact far beyond what a float32 draw (grain 2^-24) could reach.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from clipbench.config.checks import one_of, positive, require

Tail = Literal["student_t", "pareto", "alpha_stable"]


def _uniform(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """Uniform on (0, 1]: torch draws from [0, 1), and the logarithms and powers below need u > 0."""
    return 1.0 - torch.rand(tuple(shape), dtype=torch.float64, device=generator.device, generator=generator)


def student_t(shape: Sequence[int], index: float, generator: torch.Generator) -> Tensor:
    """Student's t with `index` degrees of freedom, float64.

    t = √(ν (u^{−2/ν} − 1)) · cos(2πv), u and v uniform (R. W. Bailey, Math. Comp. 62, 1994, p. 779).
    """
    radius = torch.expm1(_uniform(shape, generator).log_().mul_(-2.0 / index)).mul_(index).sqrt_()
    return radius.mul_(_uniform(shape, generator).mul_(2.0 * math.pi).cos_())


def two_sided_pareto(shape: Sequence[int], index: float, generator: torch.Generator) -> Tensor:
    """Two-sided Pareto, float64: a random sign times a Pareto, P(|x| > t) = t^{−index} for t ≥ 1."""
    size = _uniform(shape, generator).pow_(-1.0 / index)
    return size * torch.where(_uniform(shape, generator) > 0.5, 1.0, -1.0)


def symmetric_stable(shape: Sequence[int], index: float, generator: torch.Generator) -> Tensor:
    """Symmetric α-stable with characteristic function exp(−|t|^α), α = `index` ≤ 2, float64.

    x = sin(αv) / cos(v)^{1/α} · (cos(v − αv) / w)^{(1−α)/α}, v uniform on (−π/2, π/2), w exponential
    (Chambers, Mallows, Stuck, J. Am. Stat. Assoc. 71, 1976, eq. 4.1 with zero skewness). α = 2 is N(0, 2), α
    = 1 Cauchy.
    """
    angle = _uniform(shape, generator).sub_(0.5).mul_(math.pi)
    wait = _uniform(shape, generator).log_().neg_()
    wait = wait.clamp_min_(torch.finfo(torch.float64).tiny)  # u = 1 gives w = 0
    power = (1.0 - index) / index
    return torch.sin(index * angle) / angle.cos().pow(1.0 / index) * ((1.0 - index) * angle).cos().div(wait).pow(power)


SAMPLERS: dict[str, Callable[[Sequence[int], float, torch.Generator], Tensor]] = {
    "student_t": student_t,
    "pareto": two_sided_pareto,
    "alpha_stable": symmetric_stable,
}


def check(noise: str, index: float, scale: float) -> None:
    """Raise ValueError where `noise` is unknown, or `index` or `scale` does not fit it."""
    one_of("noise", noise, get_args(Tail))
    positive("index", index)
    require(noise != "alpha_stable" or index <= 2, "index", "<= 2 for alpha_stable", index)
    positive("scale", scale)


def draw(noise: str, shape: Sequence[int], index: float, scale: float, generator: torch.Generator) -> Tensor:
    """`scale` times a standard draw, float32 on the generator's device; infinite where float32 overflows."""
    return SAMPLERS[noise](shape, index, generator).mul_(scale).float()
