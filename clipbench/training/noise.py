"""Noise on the gradient: added in place to `.grad` after it was estimated and before it is clipped.

A noise is called as noise(named_parameters, generator); the generator is on the parameters' device and is all
it draws from. Nothing waits for the device: a step without noise draws too, and adds zeros. Parameters
without gradient are left out.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from clipbench.config.checks import require
from clipbench.data import tails
from clipbench.data.tails import Tail

Named = Iterable[tuple[str, nn.Parameter]]


class Noise(Protocol):
    """Adds to `.grad` in place."""

    def __call__(self, named_parameters: Named, generator: torch.Generator) -> None:
        """`generator` is on the parameters' device."""
        ...


class _Sometimes:
    """What the noises share: the distribution of the strength, and the probability that a step is hit.

    noise, index, scale: the strength's (clipbench.data.tails).  probability: that a step gets any.
    Raises ValueError where probability is outside [0, 1], or noise, index or scale do not fit.
    """

    def __init__(self, probability: float, noise: Tail, index: float, scale: float) -> None:
        require(0 <= probability <= 1, "probability", "in [0, 1]", probability)
        tails.check(noise, index, scale)
        self.probability = probability
        self.noise, self.index, self.scale = noise, index, scale

    def _hit(self, generator: torch.Generator) -> Tensor:
        """True with the probability, 0-dim on the device."""
        return torch.rand((), generator=generator, device=generator.device) < self.probability

    def _strength(self, generator: torch.Generator) -> Tensor:
        return tails.draw(self.noise, (), self.index, self.scale, generator)


class RankOne(_Sometimes):
    """Paper 2, MLP experiment: with probability 0.1 a step gets s·u·vᵀ added to EVERY gradient.

    One draw decides for the whole step; u, v (uniform unit vectors) and s (two-sided Pareto, scale 5, tail
    index 1.1) are drawn for each gradient anew. Gradients are matrices (shape[0], −1), vectors n × 1, where
    v is ±1.
    """

    def __init__(
        self, probability: float = 0.1, noise: Tail = "pareto", index: float = 1.1, scale: float = 5.0
    ) -> None:
        super().__init__(probability, noise, index, scale)

    def hits(self, generator: torch.Generator) -> bool:
        """Whether the step is hit, the generator's first draw; waits for its device."""
        return bool(self._hit(generator))

    def factors(self, shapes: Sequence[Sequence[int]], generator: torch.Generator) -> list[tuple[Tensor, Tensor]]:
        """(s·u, v) for each shape, (shape[0],) and (the rest,), after the draw that decides about the step."""
        return [self._pair(shape, generator) for shape in shapes]

    def _pair(self, shape: Sequence[int], generator: torch.Generator) -> tuple[Tensor, Tensor]:
        rows = shape[0] if shape else 1
        strength = self._strength(generator)
        left = _unit(rows, generator)
        right = _unit(math.prod(shape) // max(rows, 1), generator)
        return left * strength, right

    @torch.no_grad()
    def __call__(self, named_parameters: Named, generator: torch.Generator) -> None:
        hit = self._hit(generator)
        for _, parameter in named_parameters:
            if parameter.grad is None:
                continue
            left, right = (vector.to(parameter.grad.dtype) for vector in self._pair(parameter.shape, generator))
            outer = torch.outer(left, right).view(parameter.shape)
            parameter.grad.add_(torch.where(hit, outer, 0.0))


class Isotropic(_Sometimes):
    """Heavy-tailed noise r·w: w a uniform unit vector over ALL parameters, r symmetric, heavy-tailed.

    The direction is uniform, so all layers are hit in proportion to their size; |r| is the noise's Euclidean
    norm.
    """

    def __init__(
        self, probability: float = 1.0, noise: Tail = "student_t", index: float = 1.5, scale: float = 1.0
    ) -> None:
        super().__init__(probability, noise, index, scale)

    @torch.no_grad()
    def __call__(self, named_parameters: Named, generator: torch.Generator) -> None:
        gradients = [parameter.grad for _, parameter in named_parameters if parameter.grad is not None]
        if not gradients:
            return
        hit, strength = self._hit(generator), self._strength(generator)
        device = generator.device
        directions = [torch.randn(g.shape, generator=generator, device=device) for g in gradients]
        norm = torch.stack([direction.square().sum() for direction in directions]).sum().sqrt()
        length = torch.where(hit, strength / norm, 0.0)
        for gradient, direction in zip(gradients, directions, strict=True):
            gradient.add_((length * direction).to(gradient.dtype))


def _unit(size: int, generator: torch.Generator) -> Tensor:
    """A uniform unit vector, (size,)."""
    vector = torch.randn(size, generator=generator, device=generator.device)
    unit: Tensor = vector / torch.linalg.vector_norm(vector)
    return unit
