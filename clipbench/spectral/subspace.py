"""Block iteration on the Gram matrix for the part of a matrix above τ; in the terms of `ritz.py`."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from clipbench.spectral.gram import orthonormal_rows, start
from clipbench.spectral.ritz import Factors, Goal, Leading, by_gram, by_matrix, filtered, growth, times

ROUNDS = 6  # Rayleigh–Ritz rounds before the method gives up
PASSES = 3  # filters between two of them
FIRST_BLOCK = 8
WIDER = 2.25  # rows per value expected above τ: so many that the norms in the certificate do for a power law 1/i
SPREAD = 1e4  # growth of the top row against one at τ within the filter that starts new rows
SECOND_DEGREE = 2  # of the filter on all rows after it: rounding left by SPREAD falls by the growth at τ, squared
DEGREE = 6
DOUBT = 1.5  # the estimate of how many values are above τ may be that much too high
MARGIN = 3.0  # asked of a filter beyond what its predicted gain has to be
GAP = 0.05  # of θ: rows with closer values are not told apart by a step of first order
NEGLIGIBLE = 0.1  # of the error wanted
STALLED = 8.0  # an error of so many times the rounding in A will not fall in A: it is left to the matrix itself


def checked(matrix: Tensor, found: Leading, image: Tensor, above: float) -> tuple[Leading, Tensor]:
    """`found` with the pairs above τ seen by the matrix itself."""
    count, lower = found.above, found.basis[found.above :]
    top, images = by_matrix(matrix, found.basis[:count], above)
    left = torch.tensor(top.values, dtype=images.dtype).rsqrt()[:, None] * images
    coupling = float(torch.linalg.vector_norm(left @ lower.mT))
    values, residuals = top.values + found.values[count:], top.residuals + found.residuals[count:]
    both = Leading(values, residuals, torch.cat([top.basis, lower]), top.above, top.right, coupling=coupling)
    return both, torch.cat([images, image[count:]])


def converged(found: Leading, goal: Goal) -> bool:
    """Whether the pairs above τ (or σ_max, where there are none) are as good as asked."""
    top, gap = found.values[0], found.values[0] - found.values[:FIRST_BLOCK][-1]
    if found.above:
        rounding = found.rounding() if found.right is None else 0.0
        overshoot = max(rounding, found.coupling)
        return math.hypot(found.error(), rounding) <= goal.residual(found) and overshoot <= goal.overshoot
    # The error of a Ritz value is quadratic in its residual.
    noise = torch.finfo(found.basis.dtype).eps * top
    return top <= 0 or found.residuals[0] ** 2 <= goal.tolerance * top * gap + noise**2


def corrected(factors: Factors, found: Leading, image: Tensor) -> Leading:
    """`found` after a step of first order for each u above τ: by r/θ, and by r/(θ − θ') along a row u' below τ.

    The pairs above τ are Ritz pairs of G: what r has along them is rounding, and taken out, since A would make it
    σ_max²/θ times larger. For the change itself A with its rounding will do.
    """
    count = found.above
    values = torch.tensor(found.values, dtype=image.dtype)
    top, lower = found.basis[:count], found.basis[count:]
    theta = values[:count, None]
    residual = image[:count] - theta * top
    residual = residual - (residual @ top.mT) @ top
    along = residual @ lower.mT
    gap = (theta - values[count:]).clamp_min(GAP * theta)
    change = residual / theta + (along / gap - along / theta) @ lower
    left = torch.linalg.vector_norm(residual + times(change, factors) - theta * change, dim=1).tolist()
    better = torch.nn.functional.normalize(top + change, dim=1)
    return found._replace(residuals=left + found.residuals[count:], basis=torch.cat([better, lower]), right=None)


def nearly(found: Leading, goal: Goal) -> bool:
    """Whether `polished` can do the rest."""
    return found.above > 0 and found.error() <= STALLED * max(found.rounding(), goal.residual(found))


def polished(
    matrix: Tensor, factors: Factors, found: Leading, image: Tensor, goal: Goal, rest: float = math.inf
) -> tuple[Leading, Tensor, bool]:
    """`found` as the matrix itself sees it, or a step of first order after that; A · its basis; whether it will do.

    Where rounding in A is of no account the matrix has nothing to add. rest: bound on what the basis leaves of A, if
    there is one.
    """
    if found.rounding() > NEGLIGIBLE * goal.residual(found):
        found, image = checked(matrix, found, image, goal.above)
        found = found.with_shares(goal.tau, rest)
        if converged(found, goal):
            return found, image, True
    better = corrected(factors, found, image)
    good = better.error() <= goal.residual(found)
    return better if good else found, image, good


def _slope(values: list[float]) -> float:
    """The p of the power law i^(−p) that `values` follow from their middle to their end."""
    return max(math.log2(values[len(values) // 2 - 1] / values[-1]), 1e-3)


def _estimate(values: list[float], above: float) -> float:
    """How many eigenvalues exceed `above` when all of `values` do: their power law, continued."""
    return len(values) * 2 ** min(math.log2(values[-1] / above) / _slope(values), 60.0)


def _widen(gram: Tensor, found: Leading, image: Tensor, goal: Goal, rows: int) -> Tensor:
    """A basis of `rows` rows around one whose values are all above τ.

    The new rows are filtered with A less the pairs found, so that these do not drown what is sought; the cut is where
    the power law of the values found ends after `rows` of them.
    """
    old = found.basis.shape[0]
    values = torch.tensor(found.values, dtype=gram.dtype)
    rest = torch.addmm(gram, found.basis.mT * values, found.basis, beta=1, alpha=-1)
    cut = min(found.values[-1] * (old / rows) ** _slope(found.values), goal.above)
    spread = growth(found.values[-1], cut) / growth(goal.above, cut)
    degree = min(max(int(math.log(SPREAD) / math.log(max(spread, 1.01))), 1), DEGREE)
    more = start(rows, gram.shape[0], gram.dtype)[old:]
    basis = orthonormal_rows(torch.cat([image, filtered((rest,), more, more @ rest, cut, degree)]))
    return orthonormal_rows(filtered((gram,), basis, basis @ gram, cut, SECOND_DEGREE))


def _filters(found: Leading, goal: Goal, cut: float) -> tuple[int, int]:
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
        math.log(max(error / (eps * lean), 2.0)) / math.log(max(growth(value, cut), 1.01))
        for value, lean in zip(found.values[:count], leaning, strict=False)
    )
    needed = math.log(MARGIN * max(error / wanted, 1.0)) / math.log(max(growth(last, cut), 1.01))
    degree = min(max(int(most), 1), DEGREE)
    passes = min(math.ceil(needed / degree), PASSES)
    return passes, min(math.ceil(needed / passes), degree)


def _refine(factors: Factors, found: Leading, image: Tensor, goal: Goal) -> Tensor:
    """The basis after the filters that `_filters` asks for."""
    cut = max(found.values[-1], 1e-3 * (goal.above if found.above else found.values[0]))
    passes, degree = _filters(found, goal, cut)
    basis = orthonormal_rows(filtered(factors, found.basis, image, cut, degree))
    for _ in range(passes - 1):
        basis = orthonormal_rows(filtered(factors, basis, times(basis, factors), cut, degree))
    return basis


def leading(matrix: Tensor, gram: Tensor, goal: Goal, limit: int) -> Leading | None:
    """The eigenpairs of `gram` = matrix · matrixᵀ above goal.above, from at most `limit` rows.

    On the Gram matrix as long as its rounding does not show, then on the matrix itself. None where that fails.
    """
    basis = orthonormal_rows(start(FIRST_BLOCK, gram.shape[0], gram.dtype) @ gram @ gram)
    basis = orthonormal_rows(basis @ gram @ gram)
    for _ in range(ROUNDS):
        found, image = by_gram(gram, basis, goal.above)
        rows = basis.shape[0]
        if found.above == rows:
            wanted = _estimate(found.values, goal.above)
            if rows == limit or wanted > DOUBT * limit:
                return None
            basis = _widen(gram, found, image, goal, min(int(WIDER * wanted) + FIRST_BLOCK, limit))
            continue
        if converged(found, goal):
            return found
        if nearly(found, goal):
            found, image, good = polished(matrix, (gram,), found, image, goal)
            if good:
                return found
        basis = _refine((gram,), found, image, goal)
    return None
