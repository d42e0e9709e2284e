"""Randomized spectral clipping: the part above τ from a random subspace.

Spectral clipping, arXiv 2605.11838, efficient form: G + U_r diag(min(s, τ) − s) V_rᵀ with a truncated SVD from a
randomized range finder (Halko, Martinsson, Tropp, 2011, algorithms 4.4 and 5.1). What it does not find it does not
clip; where the spectrum is flat around τ, or τ far below σ_max, the adaptive form leaves the answer to `exact`.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from clipbench.spectral.certificate import ROUNDING
from clipbench.spectral.exact import STEEP, clip_one_, take_off_
from clipbench.spectral.gram import few_times, frobenius, orthonormal_rows, root_of_scale
from clipbench.spectral.report import LEFT, LinAlgError, MatrixReport
from clipbench.spectral.ritz import Goal, Leading, by_matrix, filtered, growth, times
from clipbench.spectral.shapes import wide

ROWS = 16  # of the adaptive form's first sketch, more than the ten values above τ it is meant for
ROUNDS = 8
SAFE = (1e-6, 1e6)  # Frobenius norms whose sixth powers float32 holds
FLAT = 0.5  # root mean square of the values not searched, over τ, from which a subspace cannot tell who is above τ
ACCURACY = 8e-4  # asked of the adaptive form's own estimate, relative to ‖C‖_F
DEGREE = 3  # of a filter: two passes over the matrix each
CAUTION = 4.0  # the smallest value found is taken that much larger for the largest that is not
FAR = 1e4  # σ_max/τ beyond which float32 does not hold what is at τ to 1e-3
SPREAD = 1e3  # growth of the top row in a filter, times eps: what rounding then leaves of it in the others is 1e-4


class Found(NamedTuple):
    """What is above τ in a wide (n, m): left u (k, n), right s v (k, m), σ_max, and the basis for the next call."""

    left: Tensor
    right: Tensor
    sigma_max: float
    basis: Tensor


def _normal(rows: int, columns: int, like: Tensor, generator: torch.Generator) -> Tensor:
    """Gaussian entries, drawn on the generator's device, in the dtype and on the device of `like`."""
    drawn = torch.randn(rows, columns, generator=generator, dtype=like.dtype, device=generator.device)
    return drawn.to(like.device)


def _fixed(
    matrix: Tensor, tau: float, rank: int, width: int, iterations: int, basis: Tensor | None, generator: torch.Generator
) -> Found:
    """Of the `rank` leading triplets those above τ, by `iterations` rounds of subspace iteration on `width` columns.

    Everything is stored as rows, the transpose of the text: a wide row block times a matrix is the faster product.
    """
    rows = matrix.new_empty(0, matrix.shape[0]) if basis is None else basis[:width]
    if rows.shape[0] < width:
        sketch = matrix @ _normal(matrix.shape[1], width - rows.shape[0], matrix, generator)
        rows = torch.cat([rows, sketch.mT])
    rows = orthonormal_rows(rows)
    for _ in range(iterations):
        rows = orthonormal_rows(orthonormal_rows(rows @ matrix) @ matrix.mT)
    rotation, sigma, right = torch.linalg.svd(rows @ matrix, full_matrices=False)
    left = rotation.mT @ rows
    count = int((sigma[:rank] > tau).sum())
    return Found(left[:count], sigma[:count, None] * right[:count], float(sigma[0]), left)


def _good(found: Leading, goal: Goal, cut: float = 0.0, degree: int = 0) -> bool:
    """Whether the pairs are good enough, or will be after a filter of that degree, if nothing unfound exceeds `cut`.

    The error of one pair is estimated as √2 (1 − τ/s) ‖G v − s u‖: one that is hardly clipped may be inexact. Where
    none is above τ, σ_max counts, and its error is quadratic in the residual.
    """
    values = found.values[: max(found.above, 1)]
    left = [1 / math.cosh(degree * math.log(growth(value, cut))) if degree else 1.0 for value in values]
    errors = [r / math.sqrt(value) * part for value, r, part in zip(values, found.residuals, left, strict=False)]
    if not found.above:
        return errors[0] ** 2 <= 2 * goal.tolerance * values[0]
    weights = [1 - goal.tau / math.sqrt(value) for value in values]
    squared = sum(2 * (weight * error) ** 2 for weight, error in zip(weights, errors, strict=True))
    return squared <= (goal.tolerance * goal.clipped(found)) ** 2


def _is_flat(found: Leading, n: int, goal: Goal) -> bool:
    """Whether the values that were not searched are mostly near τ or above it."""
    count = n - len(found.values)
    return count > 0 and goal.norm**2 - sum(found.values) > count * (FLAT * goal.tau) ** 2


def _grown(rows: Tensor, matrix: Tensor, waiting: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Twice as many rows, from those of an earlier basis that wait, or drawn; and what still waits."""
    size = min(rows.shape[0], matrix.shape[0] - rows.shape[0])
    drawn = _normal(max(size - waiting.shape[0], 0), matrix.shape[0], matrix, generator)
    more = torch.cat([waiting[:size], drawn])
    more = more - (more @ rows.mT) @ rows
    return orthonormal_rows(torch.cat([rows, (more @ matrix) @ matrix.mT])), waiting[size:]


def _degree(found: Leading, cut: float) -> int:
    """The highest degree of a filter on [0, cut] that leaves of each pair more than rounding."""
    steepness = math.log(max(growth(found.values[0], cut), 1.01))
    return max(min(int(math.log(SPREAD / torch.finfo(found.basis.dtype).eps) / steepness), DEGREE), 1)


def _adaptive(matrix: Tensor, goal: Goal, basis: Tensor | None, generator: torch.Generator) -> Found | None:
    """Rank and rounds as the spectrum asks: the rank grows until a value found is below τ. None: it cannot say.

    Of an earlier basis the first ROWS start; the others wait until so many values are above τ.
    """
    n, factors, eps = matrix.shape[0], (matrix, matrix.mT), torch.finfo(matrix.dtype).eps
    drawn = _normal(min(ROWS, n), n, matrix, generator) if basis is None else basis
    rows, waiting, steps = orthonormal_rows(times(drawn[:ROWS], factors)), drawn[ROWS:], 1
    for _ in range(ROUNDS):
        found, image = by_matrix(matrix, rows, goal.above)
        if found.above == rows.shape[0] < n:
            rows, waiting = _grown(found.basis, matrix, waiting, generator)
            steps = 0
            continue
        if (steps and _is_flat(found, n, goal)) or found.values[0] > FAR**2 * goal.above:
            return None
        # The spectral norm of what is not searched is at most its trace: below τ², nothing above τ can be missing.
        rest = goal.norm**2 - sum(found.values) + ROUNDING * eps * goal.norm**2
        seen = rest < goal.above or steps > 1
        if seen and _good(found, goal):
            break
        smallest = max(found.values[-1], 1e-3 * min(goal.above, found.values[0]))
        cut = max(min(rest, CAUTION * smallest) if steps > 1 else rest, smallest)
        degree = next((each for each in range(1, _degree(found, cut) + 1) if _good(found, goal, cut, each)), 0)
        if seen and degree:
            return _last(matrix, orthonormal_rows(filtered(factors, found.basis, image, cut, degree)), goal)
        rows = orthonormal_rows(filtered(factors, found.basis, image, smallest, _degree(found, smallest)))
        steps += 1
    count, right = found.above, found.basis @ matrix if found.right is None else found.right
    return Found(found.basis[:count], right[:count], math.sqrt(max(found.values[0], 0.0)), found.basis)


def _last(matrix: Tensor, rows: Tensor, goal: Goal) -> Found:
    """From Ritz vectors after a filter, without turning them once more."""
    right = few_times(rows, matrix)
    sigma = torch.linalg.vector_norm(right, dim=1)
    listed = sigma.tolist()
    above = [index for index, each in enumerate(listed) if each > goal.tau]
    return Found(rows[above], right[above], max(listed), rows)


@torch.inference_mode()  # as in `exact_`: many small operations, 5 to 15 % of the time
def randomized_one_(
    matrix: Tensor,
    tau: float,
    rank: int | None,
    oversample: int,
    iterations: int,
    basis: Tensor | None,
    generator: torch.Generator,
) -> tuple[MatrixReport, Tensor | None]:
    """Clip one matrix in place; also the basis for the next call (None where nothing was found)."""
    if not tau > 0:  # ≤ 0 or NaN: no rank is enough
        return clip_one_(matrix, tau), None
    work = wide(matrix).to(torch.promote_types(matrix.dtype, torch.float32))
    norm = frobenius(matrix)
    if not SAFE[0] < norm < SAFE[1]:
        norm = float(torch.linalg.vector_norm(work, dtype=torch.float64))
    if not math.isfinite(norm):
        return LEFT, None
    if norm == 0:
        return MatrixReport(0.0), None
    root = 1.0 if SAFE[0] < norm < SAFE[1] else root_of_scale(norm)
    scaled = work if root == 1 else work * root * root
    level, norm = tau * root * root, norm * root * root
    try:
        if rank is None:
            goal = Goal(min(level, norm * (1 + 1e-3)), norm, ACCURACY)
            found = _adaptive(scaled, goal, basis, generator)
            if found is None:
                return clip_one_(matrix, tau), None
        else:
            width = min(rank + oversample, scaled.shape[0])
            found = _fixed(scaled, level, min(rank, width), width, iterations, basis, generator)
            if found.sigma_max > STEEP * level and scaled.dtype != torch.float64:
                # Rounding in float32, some eps σ_max, would be left of what is taken off: once more, in float64.
                scaled, drawn = scaled.double(), found.basis.double()
                found = _fixed(scaled, level, min(rank, width), width, 1, drawn, generator)
    except LinAlgError:
        return LEFT, None
    if found.left.shape[0]:
        take_off_(scaled, found.left, found.right, level)
        if rank is None and found.sigma_max > STEEP * level:
            take_off_(scaled, found.left, found.right, level, again=True)
        if scaled.data_ptr() != matrix.data_ptr():
            wide(matrix).copy_(scaled / root / root)
    return MatrixReport(found.sigma_max / root / root, found.left.shape[0]), found.basis.to(work.dtype)


def check_setting(rank: int | None, oversample: int, iterations: int) -> None:
    """Raises ValueError for a (r, p, iterations) out of range."""
    if rank is not None and rank < 1:
        raise ValueError(f"rank must be >= 1, got {rank}")
    if oversample < 0:
        raise ValueError(f"oversample must be >= 0, got {oversample}")
    if iterations < 0:
        raise ValueError(f"iterations must be >= 0, got {iterations}")


def randomized_clip(
    matrix: Tensor,
    tau: float | Tensor,
    rank: int | None = None,
    oversample: int = 5,
    iterations: int = 1,
    basis: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Spectral clipping by randomized SVD (arXiv 2605.11838): returns (clipped, σ_max, basis).

    matrix: (n, m). rank, oversample, iterations: the paper's (r, p, power iterations), followed exactly; with
    rank=None rank and iterations are chosen from what is found, until the error as estimated from it is below 1e-3;
    where the spectrum is flat around τ, or σ_max/τ > 1e4, the answer is that of `exact`, without a basis.
    basis: that of an earlier call on a similar matrix, (k, min(n, m)): the search starts there. generator: source of
    all draws; without one they come from a generator of this call's own, seeded with 0; never from the global one.
    A matrix that is not finite comes back as it is, with σ_max = NaN. Raises ValueError for arguments out of range.
    """
    if matrix.ndim != 2:
        raise ValueError(f"matrix must have two dimensions, got {matrix.ndim}")
    check_setting(rank, oversample, iterations)
    source = torch.Generator().manual_seed(0) if generator is None else generator
    result = matrix.clone()
    report, basis = randomized_one_(result, float(tau), rank, oversample, iterations, basis, source)
    sigma_max = torch.tensor(report.sigma_max, dtype=torch.float32, device=matrix.device)
    return result, sigma_max, None if basis is None else basis.clone()  # a tensor like any other, no inference tensor
