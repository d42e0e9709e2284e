"""Ritz pairs of the part of a matrix above τ, with residuals that bound the error of what is made of them.

Everything here is about wide matrices G (n, m), n ≤ m, and their Gram matrix A = G Gᵀ; bases are stored as rows (b, n).
Let u be a Ritz vector, s its Ritz value, v = Gᵀu / s. Then Gᵀu = s v holds exactly, and r = G v − s u is all that keeps
(u, s, v) from being a singular triplet. X = Σ (s − τ) u vᵀ is the proximal point of G + E with E = −Σ r vᵀ, if
nothing else is above τ; the proximal map does not expand distances, so ‖X − X*‖_F ≤ ‖E‖_F = (Σ ‖r‖²)^{1/2}: the
error of G − X against the exact clip is at most that, whatever the gaps in the spectrum.
"""

from __future__ import annotations

import math
from functools import reduce
from typing import NamedTuple

import torch
from torch import Tensor

from clipbench.spectral.gram import few_times

OVERSHOOT = 5.0  # ‖C‖_F/τ beyond which the error is measured against τ instead


class Goal(NamedTuple):
    """tau: the threshold. norm: ‖G‖_F. tolerance: error wanted, relative to the clipped matrix."""

    tau: float
    norm: float
    tolerance: float

    @property
    def above(self) -> float:
        """Eigenvalues of A larger than this are clipped; the slack is a part of the tolerance."""
        return self.tau**2 * (1 + self.tolerance)

    def clipped(self, found: Leading) -> float:
        """‖C‖_F of the clipped matrix, from ‖C‖_F² = ‖G‖_F² − Σ (s² − τ²); at least τ where anything is above it."""
        taken = sum(value - self.tau**2 for value in found.values[: found.above])
        return max(self.tau, math.sqrt(max(self.norm**2 - taken, 0.0)))

    def residual(self, found: Leading) -> float:
        """The bound wanted for (Σ ‖r‖²)^{1/2}: tolerance · ‖C‖_F.

        At most tolerance · OVERSHOOT τ: what is left over a flat bulk just below τ adds to σ_max by half of it.
        """
        return self.tolerance * min(self.clipped(found), OVERSHOOT * self.tau)


Factors = tuple[Tensor, ...]  # of A: (A,), or (G, Gᵀ) where A is never made


def times(rows: Tensor, factors: Factors) -> Tensor:
    """rows · A."""
    return reduce(torch.matmul, factors, rows)


class Leading(NamedTuple):
    """Ritz pairs, largest first: values θ = s², residuals ‖A u − θ u‖, basis (b, n); `above` of them exceed τ².

    right: basis · G (b, m), where it is known.
    """

    values: list[float]
    residuals: list[float]
    basis: Tensor
    above: int
    right: Tensor | None = None

    def error(self) -> float:
        """(Σ ‖r‖²)^{1/2} over the pairs above τ; ‖r‖ = ‖A u − θ u‖ / s."""
        pairs = zip(self.values[: self.above], self.residuals[: self.above], strict=True)
        return math.sqrt(sum(residual**2 / value for value, residual in pairs))

    def rounding(self) -> float:
        """What rounding in A, about eps/2 · σ_max² in spectral norm, adds to that error without showing in it."""
        unit = torch.finfo(self.basis.dtype).eps / 2 * self.values[0]
        return unit * math.sqrt(sum(1 / value for value in self.values[: self.above]))


def _ritz(small: Tensor, basis: Tensor, image: Tensor, above: float) -> tuple[Leading, Tensor, Tensor]:
    """Rayleigh–Ritz: `small` is A seen in `basis` (b, n), `image` is A · basis.

    Also returns A · the Ritz vectors, and the rotation (b, b) that takes the basis to them.
    """
    values, rotation = torch.linalg.eigh(small)
    values, rotation = values.flip(0), rotation.flip(1).mT.to(basis.dtype)
    vectors, image = rotation @ basis, rotation @ image
    residuals = torch.linalg.vector_norm(image - values.to(basis.dtype)[:, None] * vectors, dim=1)
    listed = values.tolist()
    return Leading(listed, residuals.tolist(), vectors, sum(value > above for value in listed)), image, rotation


def by_gram(gram: Tensor, basis: Tensor, above: float) -> tuple[Leading, Tensor]:
    """Rayleigh–Ritz with products of A."""
    image = basis @ gram
    return _ritz(image @ basis.mT, basis, image, above)[:2]


def by_matrix(matrix: Tensor, basis: Tensor, above: float) -> tuple[Leading, Tensor]:
    """Rayleigh–Ritz with products of G, whose residuals are right to eps σ_max: A has squares, and half the digits."""
    right = few_times(basis, matrix)
    double = right.double()
    found, image, rotation = _ritz(double @ double.mT, basis, few_times(right, matrix.mT), above)
    return found._replace(right=rotation @ right), image


def growth(value: float, cut: float) -> float:
    """Factor per degree by which a Chebyshev polynomial on [0, cut] grows at `value`."""
    x = 2 * max(value, cut) / cut - 1
    return x + math.sqrt(x * x - 1)


def filtered(factors: Factors, basis: Tensor, image: Tensor, cut: float, degree: int) -> Tensor:
    """T_d(A) · basis, T_d the Chebyshev polynomial that stays within 1 on [0, cut]; `image` is A · basis."""
    before, now = basis, image * (2 / cut) - basis
    for _ in range(degree - 1):
        half = times(now, factors[:-1])
        before, now = now, torch.addmm(now * 2 + before, half, factors[-1], beta=-1, alpha=4 / cut)
    return now
