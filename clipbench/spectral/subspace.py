"""The part of a matrix above τ, by block iteration, with residuals that bound the error of what is made of it.

Everything here is about wide matrices G (n, m), n ≤ m, and their Gram matrix A = G Gᵀ; bases are stored as rows (b, n).
Let u be a Ritz vector, s its Ritz value, v = Gᵀu / s. Then Gᵀu = s v holds exactly, and r = G v − s u is all that keeps
(u, s, v) from being a singular triplet. X = Σ (s − τ) u vᵀ is the proximal point of G + E with E = −Σ r vᵀ, if
nothing else is above τ; the proximal map does not expand distances, so ‖X − X*‖_F ≤ ‖E‖_F = (Σ ‖r‖²)^{1/2}: the
error of G − X against the exact clip is at most that, whatever the gaps in the spectrum.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from clipbench.spectral.gram import orthonormal_rows, start

ROUNDS = 8  # Rayleigh–Ritz rounds on the Gram matrix before the method gives up
DIRECT_ROUNDS = 3  # and on the matrix itself
FIRST_BLOCK = 8
SPREAD = 1e6  # growth of the top pair against one at τ between two orthonormalisations; below 1/eps of float32
DEGREE = 6
DOUBT = 1.5  # the estimate of how many values are above τ may be that much too high
OVERSHOOT = 5.0
SPARE = 4  # rows kept beyond the pairs above τ when they are polished


class Goal(NamedTuple):
    """tau: the threshold. norm: ‖G‖_F. tolerance: error wanted, relative to the clipped matrix."""

    tau: float
    norm: float
    tolerance: float

    @property
    def above(self) -> float:
        """Eigenvalues of A larger than this are clipped; the slack is a part of the tolerance."""
        return self.tau**2 * (1 + self.tolerance)

    def residual(self, found: Leading) -> float:
        """The bound wanted for (Σ ‖r‖²)^{1/2}: tolerance · ‖C‖_F, where ‖C‖_F² = ‖G‖_F² − Σ (s² − τ²).

        At most tolerance · OVERSHOOT τ: what is left over a flat bulk just below τ adds to σ_max by half of it.
        """
        taken = sum(value - self.tau**2 for value in found.values[: found.above])
        clipped = math.sqrt(max(self.norm**2 - taken, 0.0))
        return self.tolerance * min(max(self.tau, clipped), OVERSHOOT * self.tau)


class Leading(NamedTuple):
    """Ritz pairs, largest first: values θ = s², residuals ‖A u − θ u‖, basis (b, n); `above` of them exceed τ²."""

    values: list[float]
    residuals: list[float]
    basis: Tensor
    above: int

    def error(self) -> float:
        """(Σ ‖r‖²)^{1/2} over the pairs above τ; ‖r‖ = ‖A u − θ u‖ / s."""
        pairs = zip(self.values[: self.above], self.residuals[: self.above], strict=True)
        return math.sqrt(sum(residual**2 / value for value, residual in pairs))

    def rounding(self) -> float:
        """What rounding in A, about eps/2 · σ_max² in spectral norm, adds to that error without showing in it."""
        unit = torch.finfo(self.basis.dtype).eps / 2 * self.values[0]
        return unit * math.sqrt(sum(1 / value for value in self.values[: self.above]))


def _ritz(small: Tensor, basis: Tensor, image: Tensor, above: float) -> tuple[Leading, Tensor]:
    """Rayleigh–Ritz: `small` is A seen in `basis` (b, n), `image` is A·basis; also returns A · the Ritz vectors."""
    values, rotation = torch.linalg.eigh(small)
    values, rotation = values.flip(0), rotation.flip(1).mT.to(basis.dtype)
    vectors, image = rotation @ basis, rotation @ image
    residuals = torch.linalg.vector_norm(image - values.to(basis.dtype)[:, None] * vectors, dim=1)
    listed = values.tolist()
    return Leading(listed, residuals.tolist(), vectors, sum(value > above for value in listed)), image


def _settled(found: Leading, goal: Goal) -> bool:
    """Whether the pairs above τ (or σ_max, where there are none) are as good as asked, or as this arithmetic gives."""
    top, gap = found.values[0], found.values[0] - found.values[-1]
    if found.above:
        return found.error() <= max(goal.residual(found), found.rounding())
    # The error of a Ritz value is quadratic in its residual.
    noise = torch.finfo(found.basis.dtype).eps * top
    return top <= 0 or found.residuals[0] ** 2 <= goal.tolerance * top * gap + noise**2


def _estimate(values: list[float], above: float) -> float:
    """How many eigenvalues exceed `above` when all of `values` do: their power law, continued."""
    half = len(values) // 2
    slope = max(math.log2(values[half - 1] / values[-1]), 1e-3)
    return len(values) * 2 ** min(math.log2(values[-1] / above) / slope, 60.0)


def _growth(value: float, cut: float) -> float:
    """Factor per degree by which a Chebyshev polynomial on [0, cut] grows at `value`."""
    x = 2 * max(value, cut) / cut - 1
    return x + math.sqrt(x * x - 1)


def _filter(gram: Tensor, found: Leading, image: Tensor, goal: Goal) -> Tensor:
    """T_d(A) · the Ritz vectors, T_d the Chebyshev polynomial that stays within 1 on [0, smallest Ritz value]."""
    top, bottom = found.values[0], found.values[-1]
    target = goal.above if found.above else top
    cut = max(bottom, 1e-3 * target)
    spread = _growth(top, cut) / _growth(target, cut)
    degree = min(max(int(math.log(SPREAD) / math.log(max(spread, 1.01))), 1), DEGREE)
    before, now = found.basis, image * (2 / cut) - found.basis
    for _ in range(degree - 1):
        before, now = now, torch.addmm(now * 2 + before, now, gram, beta=-1, alpha=4 / cut)
    return now


def leading(gram: Tensor, goal: Goal, limit: int) -> Leading | None:
    """The eigenpairs of `gram` above goal.above, from at most `limit` rows; None where that fails."""
    n = gram.shape[0]
    basis = orthonormal_rows(start(FIRST_BLOCK, n, gram.dtype) @ gram @ gram)
    basis = orthonormal_rows(basis @ gram @ gram)
    for _ in range(ROUNDS):
        image = basis @ gram
        found, image = _ritz(image @ basis.mT, basis, image, goal.above)
        rows = basis.shape[0]
        if found.above == rows:
            wanted = _estimate(found.values, goal.above)
            if rows == limit or wanted > DOUBT * limit:
                return None
            more = start(min(int(1.5 * wanted) + FIRST_BLOCK, limit), n, gram.dtype)[rows:]
            image = torch.cat([image, orthonormal_rows(more @ gram @ gram) @ gram])
            basis = orthonormal_rows(image)
        elif _settled(found, goal):
            return found
        else:
            basis = orthonormal_rows(_filter(gram, found, image, goal))
    return None


def polish(matrix: Tensor, found: Leading, goal: Goal) -> Leading | None:
    """The same pairs to the goal, with products of the matrix itself; None where that fails.

    A holds σ² and so loses twice the digits: its rounding, eps σ_max², is what `leading` cannot go below. Here the
    small matrix is formed in float64 and the residual is measured against the matrix, to eps σ_max.
    """
    basis = found.basis[: found.above + max(SPARE, found.above // 4)]
    for _ in range(DIRECT_ROUNDS):
        right = basis @ matrix
        double = right.double()
        found, image = _ritz(double @ double.mT, basis, right @ matrix.mT, goal.above)
        if found.above < len(found.values) and found.error() <= goal.residual(found):
            return found
        basis = orthonormal_rows(image)
    return None
