"""Ritz pairs of the part of a matrix above τ, with residuals that bound the error of what is made of them.

Everything here is about wide matrices G (n, m), n ≤ m, and their Gram matrix A = G Gᵀ; bases are stored as rows (b, n).
Let u be a Ritz vector, s its Ritz value, v = Gᵀu / s. Then Gᵀu = s v holds exactly, and r = G v − s u is all that keeps
(u, s, v) from being a singular triplet. X = Σ (s − τ) u vᵀ is the proximal point of G + E with E = −Σ r vᵀ, if
nothing else is above τ; the proximal map does not expand distances, so ‖X − X*‖_F ≤ ‖E‖_F = (Σ ‖r‖²)^{1/2}: the
error of G − X against the exact clip is at most that, whatever the gaps in the spectrum.

Where all else is known to be ≤ ν < θ = s² in A, less of r reaches the answer. G − X is (I − f(A)) G with
f(θ) = 1 − τ/s; to first order r changes f(A) by f(θ)/(θ − ν) s r uᵀ and its transpose at most (Daleckii and Krein,
1965), hence G − X by √2 (1 − τ/s)/(1 − ν/θ) ‖r‖: a pair that is hardly clipped may be inexact.
"""

from __future__ import annotations

import math
from functools import reduce
from typing import NamedTuple

import torch
from torch import Tensor

from clipbench.spectral.gram import few_times, few_times_less

FIRST_ORDER = 0.1  # the least share of a residual that counts: what is of second order in it stays out of sight
OVERSHOOT = 2.25  # over the tolerance: what may stay, in units of τ, along values just below τ
ISOLATED = 0.7  # of τ²: what the basis leaves of A, and below it no value just below τ


class Goal(NamedTuple):
    """tau: the threshold. norm: ‖G‖_F. tolerance: error wanted, relative to the clipped matrix. total: ‖A‖_F."""

    tau: float
    norm: float
    tolerance: float
    total: float = math.inf

    @property
    def above(self) -> float:
        """Eigenvalues of A larger than this are clipped; the slack is a part of the tolerance."""
        return self.tau**2 * (1 + self.tolerance / 4)

    def clipped(self, found: Leading) -> float:
        """‖C‖_F of the clipped matrix, from ‖C‖_F² = ‖G‖_F² − Σ (s² − τ²); at least τ where anything is above it."""
        taken = sum(value - self.tau**2 for value in found.values[: found.above])
        return max(self.tau, math.sqrt(max(self.norm**2 - taken, 0.0)))

    @property
    def overshoot(self) -> float:
        """The bound wanted for what is left of u along values just below τ: it adds half of itself to σ_max."""
        return self.tolerance * OVERSHOOT * self.tau

    def residual(self, found: Leading) -> float:
        """The bound wanted for (Σ ‖r‖²)^{1/2}: tolerance · ‖C‖_F; the overshoot, where r may lie just below τ.

        r is orthogonal to the basis, and what that leaves of A is ≤ (‖A‖_F² − Σ θ²)^{1/2}.
        """
        wanted = self.tolerance * self.clipped(found)
        rounding = 4 * torch.finfo(found.basis.dtype).eps * self.total**2
        left = self.total**2 - sum(value**2 for value in found.values) + rounding
        return wanted if left <= (ISOLATED * self.tau**2) ** 2 else min(wanted, self.overshoot)


Factors = tuple[Tensor, ...]  # of A: (A,), or (G, Gᵀ) where A is never made


def times(rows: Tensor, factors: Factors) -> Tensor:
    """rows · A."""
    return reduce(few_times, factors, rows)


class Leading(NamedTuple):
    """Ritz pairs, largest first: values θ = s², residuals ‖A u − θ u‖, basis (b, n); `above` of them exceed τ².

    right: basis · G (b, m), where it is known. shares: how much of each ‖r‖ reaches the answer, where that is known.
    coupling: the part of (Σ ‖r‖²)^{1/2} along the other pairs; 0 where all of them are Ritz pairs of one product.
    """

    values: list[float]
    residuals: list[float]
    basis: Tensor
    above: int
    right: Tensor | None = None
    shares: list[float] | None = None
    coupling: float = 0.0

    def error(self) -> float:
        """(Σ ‖r‖²)^{1/2} over the pairs above τ, each with its share; ‖r‖ = ‖A u − θ u‖ / s."""
        shares = self.shares or [1.0] * self.above
        pairs = zip(self.values[: self.above], self.residuals[: self.above], shares, strict=True)
        return math.sqrt(sum((share * residual) ** 2 / value for value, residual, share in pairs))

    def with_shares(self, tau: float, rest: float) -> Leading:
        """Its shares, where what the basis leaves of A is ≤ `rest` in spectral norm."""
        lower = self.values[self.above :]
        below = max([rest, *lower]) + math.hypot(*self.residuals[self.above :])

        def share(value: float) -> float:
            if value <= below:
                return 1.0
            reaching = math.sqrt(2) * (1 - tau / math.sqrt(value)) / (1 - below / value)
            return min(max(reaching, FIRST_ORDER), 1.0)

        return self._replace(shares=[share(value) for value in self.values[: self.above]])

    def rounding(self) -> float:
        """What rounding in A, some eps/4 · σ_max² in spectral norm, adds to that error without showing in it."""
        unit = torch.finfo(self.basis.dtype).eps / 4 * self.values[0]
        return unit * math.sqrt(sum(1 / value for value in self.values[: self.above]))


def residuals(values: Tensor, vectors: Tensor, images: Tensor) -> list[float]:
    """‖A u − θ u‖ for each row u of `vectors`; images: A · vectors."""
    theta = values.to(vectors)[:, None]
    lengths: list[float] = torch.linalg.vector_norm(torch.addcmul(images, theta, vectors, value=-1), dim=1).tolist()
    return lengths


def rayleigh_ritz(small: Tensor, basis: Tensor, image: Tensor, above: float) -> tuple[Leading, Tensor, Tensor]:
    """Rayleigh–Ritz: `small` is A seen in `basis` (b, n), of which the lower triangle is read; `image` is A · basis.

    Also returns A · the Ritz vectors, and the rotation (b, b) that takes the basis to them.
    """
    values, rotation = torch.linalg.eigh(small)
    values, rotation = values.flip(0), rotation.flip(1).mT.to(basis)
    vectors, image = rotation @ basis, rotation @ image
    listed = values.tolist()
    found = Leading(listed, residuals(values, vectors, image), vectors, sum(value > above for value in listed))
    return found, image, rotation


def by_gram(gram: Tensor, basis: Tensor, above: float) -> tuple[Leading, Tensor]:
    """Rayleigh–Ritz with products of A."""
    image = basis @ gram
    return rayleigh_ritz(image @ basis.mT, basis, image, above)[:2]


def by_matrix(matrix: Tensor, basis: Tensor, above: float) -> tuple[Leading, Tensor]:
    """Rayleigh–Ritz with products of G, whose residuals are right to eps σ_max: A has squares, and half the digits."""
    right = few_times(basis, matrix)
    double = right.double()
    found, image, rotation = rayleigh_ritz(double @ double.mT, basis, few_times(right, matrix.mT), above)
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
        before, now = now, few_times_less(half, factors[-1], now * 2 + before, scale=4 / cut)
    return now
