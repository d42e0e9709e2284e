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

ROUNDS = 6  # Rayleigh–Ritz rounds before the method gives up
PASSES = 3  # filters between two of them
FIRST_BLOCK = 8
WIDER = 2.25  # rows per value expected above τ: so many that the norms in the certificate do for a power law 1/i
SPREAD = 1e4  # growth of the top row against one at τ within the filter that starts new rows
SECOND_DEGREE = (
    2  # of the filter after it, on all rows: what SPREAD leaves of rounding falls by the growth at τ, squared
)
DEGREE = 6
DOUBT = 1.5  # the estimate of how many values are above τ may be that much too high
OVERSHOOT = 5.0
MARGIN = 3.0  # asked of a filter beyond what its predicted gain has to be
STALLED = 8.0  # an error of so many times the rounding in A will not fall in A: it is left to the matrix itself


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


def _by_gram(gram: Tensor, basis: Tensor, above: float) -> tuple[Leading, Tensor]:
    """Rayleigh–Ritz with products of A."""
    image = basis @ gram
    return _ritz(image @ basis.mT, basis, image, above)[:2]


def _by_matrix(matrix: Tensor, basis: Tensor, above: float) -> tuple[Leading, Tensor]:
    """Rayleigh–Ritz with products of G, whose residuals are right to eps σ_max: A has squares, and half the digits."""
    right = basis @ matrix
    double = right.double()
    found, image, rotation = _ritz(double @ double.mT, basis, right @ matrix.mT, above)
    return found._replace(right=rotation @ right), image


def _settled(found: Leading, goal: Goal) -> bool:
    """Whether the pairs above τ (or σ_max, where there are none) are as good as asked."""
    top, gap = found.values[0], found.values[0] - found.values[-1]
    if found.above:
        rounding = found.rounding() if found.right is None else 0.0
        return math.hypot(found.error(), rounding) <= goal.residual(found)
    # The error of a Ritz value is quadratic in its residual.
    noise = torch.finfo(found.basis.dtype).eps * top
    return top <= 0 or found.residuals[0] ** 2 <= goal.tolerance * top * gap + noise**2


def _corrected(gram: Tensor, found: Leading, image: Tensor) -> Leading:
    """`found` with u + r/θ for each u above τ, whose residual is A r/θ; A with its rounding will do for that.

    r is orthogonal to the basis but for rounding, which is taken out: A would make it σ_max²/θ times larger.
    """
    count = found.above
    values = torch.tensor(found.values[:count], dtype=image.dtype)[:, None]
    change = image[:count] / values - found.basis[:count]
    change = change - (change @ found.basis.mT) @ found.basis
    left = torch.linalg.vector_norm(change @ gram, dim=1).tolist()
    better = torch.nn.functional.normalize(found.basis[:count] + change, dim=1)
    basis = torch.cat([better, found.basis[count:]])
    return found._replace(residuals=left + found.residuals[count:], basis=basis, right=None)


def _slope(values: list[float]) -> float:
    """The p of the power law i^(−p) that `values` follow from their middle to their end."""
    return max(math.log2(values[len(values) // 2 - 1] / values[-1]), 1e-3)


def _estimate(values: list[float], above: float) -> float:
    """How many eigenvalues exceed `above` when all of `values` do: their power law, continued."""
    return len(values) * 2 ** min(math.log2(values[-1] / above) / _slope(values), 60.0)


def _growth(value: float, cut: float) -> float:
    """Factor per degree by which a Chebyshev polynomial on [0, cut] grows at `value`."""
    x = 2 * max(value, cut) / cut - 1
    return x + math.sqrt(x * x - 1)


def _filter(gram: Tensor, basis: Tensor, image: Tensor, cut: float, degree: int) -> Tensor:
    """T_d(A) · basis, T_d the Chebyshev polynomial that stays within 1 on [0, cut]; `image` is A · basis."""
    before, now = basis, image * (2 / cut) - basis
    for _ in range(degree - 1):
        before, now = now, torch.addmm(now * 2 + before, now, gram, beta=-1, alpha=4 / cut)
    return now


def _widen(gram: Tensor, found: Leading, image: Tensor, goal: Goal, rows: int) -> Tensor:
    """A basis of `rows` rows around one whose values are all above τ.

    The new rows are filtered with A less the pairs found, so that these do not drown what is sought; the cut is where
    the power law of the values found ends after `rows` of them.
    """
    old = found.basis.shape[0]
    values = torch.tensor(found.values, dtype=gram.dtype)
    rest = torch.addmm(gram, found.basis.mT * values, found.basis, beta=1, alpha=-1)
    cut = min(found.values[-1] * (old / rows) ** _slope(found.values), goal.above)
    spread = _growth(found.values[-1], cut) / _growth(goal.above, cut)
    degree = min(max(int(math.log(SPREAD) / math.log(max(spread, 1.01))), 1), DEGREE)
    more = start(rows, gram.shape[0], gram.dtype)[old:]
    basis = orthonormal_rows(torch.cat([image, _filter(rest, more, more @ rest, cut, degree)]))
    return orthonormal_rows(_filter(gram, basis, basis @ gram, cut, SECOND_DEGREE))


def _plan(found: Leading, goal: Goal, cut: float) -> tuple[int, int]:
    """Filters to be applied before the next Rayleigh–Ritz round, and their degree.

    A row that leans by c towards a pair which the filter makes G times larger has that pair's rounding, eps c G, to
    bear; the degree keeps that below what is left of the error itself.
    """
    eps = torch.finfo(found.basis.dtype).eps
    count = max(found.above, 1)
    last = found.values[count - 1]
    error = found.error() / math.sqrt(last) if found.above else found.residuals[0] / last
    wanted = goal.residual(found) / math.sqrt(last) if found.above else goal.tolerance
    leaning = [max(residual / value, eps) for value, residual in zip(found.values, found.residuals, strict=True)]
    most = min(
        math.log(max(error / (eps * lean), 2.0)) / math.log(max(_growth(value, cut), 1.01))
        for value, lean in zip(found.values[:count], leaning, strict=False)
    )
    needed = math.log(MARGIN * max(error / wanted, 1.0)) / math.log(max(_growth(last, cut), 1.01))
    degree = min(max(int(most), 1), DEGREE)
    passes = min(math.ceil(needed / degree), PASSES)
    return passes, min(math.ceil(needed / passes), degree)


def _refine(gram: Tensor, found: Leading, image: Tensor, goal: Goal) -> Tensor:
    """The basis after the filters that `_plan` asks for."""
    cut = max(found.values[-1], 1e-3 * (goal.above if found.above else found.values[0]))
    passes, degree = _plan(found, goal, cut)
    basis = orthonormal_rows(_filter(gram, found.basis, image, cut, degree))
    for _ in range(passes - 1):
        basis = orthonormal_rows(_filter(gram, basis, basis @ gram, cut, degree))
    return basis


def _too_coarse(found: Leading, goal: Goal, count: float) -> bool:
    """Whether the rounding in A would show in the part above τ, if that has `count` values."""
    unit = torch.finfo(found.basis.dtype).eps / 2 * found.values[0]
    return unit * math.sqrt(count / goal.above) > goal.tolerance * goal.tau


def leading(matrix: Tensor, gram: Tensor, goal: Goal, limit: int) -> Leading | None:
    """The eigenpairs of `gram` = matrix · matrixᵀ above goal.above, from at most `limit` rows.

    On the Gram matrix as long as its rounding does not show, then on the matrix itself. None where that fails.
    """
    n, direct = gram.shape[0], False
    basis = orthonormal_rows(start(FIRST_BLOCK, n, gram.dtype) @ gram @ gram)
    basis = orthonormal_rows(basis @ gram @ gram)
    for _ in range(ROUNDS):
        found, image = _by_matrix(matrix, basis, goal.above) if direct else _by_gram(gram, basis, goal.above)
        rows = basis.shape[0]
        if found.above == rows:
            wanted = _estimate(found.values, goal.above)
            if rows == limit or wanted > DOUBT * limit:
                return None
            direct = _too_coarse(found, goal, wanted)
            basis = _widen(gram, found, image, goal, min(int(WIDER * wanted) + FIRST_BLOCK, limit))
            continue
        if _settled(found, goal):
            return found
        if direct:
            better = _corrected(gram, found, image)
            if better.error() <= goal.residual(found):
                return better
        direct = direct or (found.above > 0 and found.error() <= STALLED * found.rounding())
        basis = _refine(gram, found, image, goal)
    return None
