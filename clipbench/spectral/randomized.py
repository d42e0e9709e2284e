"""Randomized spectral clipping: the part above τ from a random subspace.

Spectral clipping, arXiv 2605.11838, efficient form: G + U_r diag(min(s, τ) − s) V_rᵀ with a truncated SVD from a
randomized range finder (Halko, Martinsson, Tropp, 2011, algorithms 4.4 and 5.1). What it does not find it does not
clip; where the spectrum is flat around τ, the adaptive form leaves the answer to `exact`.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from clipbench.spectral.exact import clip_one_
from clipbench.spectral.gram import frobenius, orthonormal_rows
from clipbench.spectral.report import LEFT, LinAlgError, Outcome
from clipbench.spectral.shapes import wide

ROWS = 16  # of the adaptive form's first sketch, more than the ten values above τ it is meant for
ROUNDS = 8
SAFE = (1e-6, 1e6)  # Frobenius norms whose sixth powers float32 holds
CAUTION = 3.0  # what a power step is expected to leave of a residual is taken that much larger
FLAT = 0.5  # root mean square of the values not searched, over τ, from which a subspace cannot tell who is above τ
ACCURACY = 8e-4  # asked of the adaptive form's own estimate, relative to ‖C‖_F


class Found(NamedTuple):
    """Leading triplets of a wide (n, m): left (k, n), sigma (k,) descending, right (k, m), and the basis (b, n)."""

    left: Tensor
    sigma: Tensor
    right: Tensor
    basis: Tensor


def _normal(rows: int, columns: int, like: Tensor, generator: torch.Generator) -> Tensor:
    """Gaussian entries, drawn on the generator's device, in the dtype and on the device of `like`."""
    drawn = torch.randn(rows, columns, generator=generator, dtype=like.dtype, device=generator.device)
    return drawn.to(like.device)


def _fixed(
    matrix: Tensor, rank: int, width: int, iterations: int, basis: Tensor | None, generator: torch.Generator
) -> Found:
    """The `rank` leading triplets, by `iterations` rounds of subspace iteration on `width` columns.

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
    return Found(left[:rank], sigma[:rank], right[:rank], left)


def _powers(rows: Tensor, matrix: Tensor) -> Tensor:
    """Two power steps, then an orthonormal basis."""
    for _ in range(2):
        rows = (rows @ matrix) @ matrix.mT
    return orthonormal_rows(rows)


def _settled(sigma: Tensor, residual: Tensor, tau: float, norm: float) -> tuple[bool, int]:
    """Whether the pairs are good enough, and how many lie above τ; `residual` holds ‖G v − s u‖.

    The error of one pair is estimated as √2 (1 − τ/s) ‖G v − s u‖: one that is hardly clipped may be inexact. Where
    none is above τ, σ_max counts, and its error is quadratic in the residual.
    """
    excess = (sigma - tau).clamp_min(0)
    error = (math.sqrt(2) * excess / sigma.clamp_min(tau) * residual).square().sum()
    taken = torch.where(excess > 0, sigma**2 - tau**2, 0.0).sum()
    sums = torch.stack([error, taken, (excess > 0).sum().to(error.dtype), sigma[0], residual[0]])
    squared, removed, count, top, first = sums.tolist()
    if count:
        return squared <= ACCURACY**2 * max(norm**2 - removed, tau**2), int(count)
    return first**2 <= 2 * ACCURACY * top**2, 0


def _flat(energy: float, count: int, tau: float) -> bool:
    """Whether `count` values with that sum of squares, those that were not searched, are mostly near τ or above it."""
    return count > 0 and energy > count * (FLAT * tau) ** 2


def _adaptive(
    matrix: Tensor, norm: float, tau: float, basis: Tensor | None, generator: torch.Generator
) -> Found | None:
    """Rank and rounds as the spectrum asks: the rank grows until a value found is below τ. None: flat around τ.

    Of an earlier basis the first ROWS start; the others wait until so many values are above τ.
    """
    n = matrix.shape[0]
    tau = min(tau, norm * (1 + 1e-3))
    tiny = torch.finfo(matrix.dtype).tiny
    if basis is None:
        basis = _powers(_normal(min(ROWS, n), n, matrix, generator), matrix)
    waiting = basis[ROWS:]
    rows = _powers(basis[:ROWS], matrix)
    for _ in range(ROUNDS):
        right = rows @ matrix
        values, rotation = torch.linalg.eigh(right @ right.mT)
        sigma, rotation = values.flip(0).clamp_min(tiny).sqrt(), rotation.flip(1).mT
        rows, right = rotation @ rows, rotation @ right
        image = right @ matrix.mT
        residual = torch.linalg.vector_norm(image / sigma[:, None] - sigma[:, None] * rows, dim=1)
        good, count = _settled(sigma, residual, tau, norm)
        found = Found(rows, sigma, right / sigma[:, None], rows)
        full = count == rows.shape[0] < n
        if not full and _flat(norm**2 - float(sigma.square().sum()), n - rows.shape[0], tau):
            return None
        if good and not full:
            break
        # A power step makes the residual of a pair (σ/s)² times smaller, σ the largest value that is not among them.
        if not full and _settled(sigma, CAUTION * residual * (sigma[-1] / sigma) ** 2, tau, norm)[0]:
            return _stepped(matrix, image)
        if full:
            size = min(rows.shape[0], n - rows.shape[0])
            more = torch.cat([waiting[:size], _normal(max(size - waiting.shape[0], 0), n, matrix, generator)])
            waiting = waiting[size:]
            image = torch.cat([image, orthonormal_rows((more @ matrix) @ matrix.mT)])
        rows = orthonormal_rows((image @ matrix) @ matrix.mT)
    return found


def _stepped(matrix: Tensor, image: Tensor) -> Found:
    """Triplets from the Ritz vectors after one power step (`image`), without turning them once more."""
    rows = orthonormal_rows(image)
    right = rows @ matrix
    sigma = torch.linalg.vector_norm(right, dim=1)
    return Found(rows, sigma, right / sigma[:, None], rows)


def randomized_one_(
    matrix: Tensor,
    tau: float,
    rank: int | None,
    oversample: int,
    iterations: int,
    basis: Tensor | None,
    generator: torch.Generator,
) -> tuple[Outcome, Tensor | None]:
    """Clip one matrix in place; also the basis for the next call (None where nothing was found)."""
    work = wide(matrix).to(torch.promote_types(matrix.dtype, torch.float32))
    norm = frobenius(matrix)
    if not SAFE[0] < norm < SAFE[1]:
        norm = float(torch.linalg.vector_norm(work, dtype=torch.float64))
    if not math.isfinite(norm):
        return LEFT, None
    if norm == 0:
        return Outcome(0.0), None
    unit = 1.0 if SAFE[0] < norm < SAFE[1] else norm
    scaled = work if unit == 1 else (work.double() / unit).to(work.dtype)
    level = tau / unit
    try:
        if rank is None:
            found = _adaptive(scaled, norm / unit, level, basis, generator)
            if found is None:
                return clip_one_(matrix, tau), None
        else:
            width = min(rank + oversample, scaled.shape[0])
            found = _fixed(scaled, min(rank, width), width, iterations, basis, generator)
    except LinAlgError:
        return LEFT, None
    count = int((found.sigma > level).sum())
    if count:
        left, sigma, right = found.left[:count], found.sigma[:count], found.right[:count]
        scaled.addmm_((left * (sigma - level)[:, None]).mT, right, alpha=-1)
        if scaled.data_ptr() != matrix.data_ptr():
            wide(matrix).copy_(scaled if unit == 1 else scaled.double() * unit)
    return Outcome(float(found.sigma[0]) * unit, count), found.basis


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
    rank=None rank and iterations are chosen from what is found, for an error of about 1e-3 up to σ_max/τ = 100 (float32
    loses the values at τ beyond); where the spectrum is flat around τ the answer is that of `exact`, without a basis.
    basis: that of an earlier call on a similar matrix, (k, min(n, m)): the search starts there. generator: source of
    all draws; without one they come from a generator of this call's own, seeded with 0; never from the global one.
    A matrix that is not finite comes back as it is, with σ_max = NaN. Raises ValueError for arguments out of range.
    """
    if matrix.ndim != 2:
        raise ValueError(f"matrix must have two dimensions, got {matrix.ndim}")
    check_setting(rank, oversample, iterations)
    source = torch.Generator().manual_seed(0) if generator is None else generator
    result = matrix.clone()
    outcome, basis = randomized_one_(result, float(tau), rank, oversample, iterations, basis, source)
    return result, torch.tensor(outcome.sigma_max, dtype=torch.float32, device=matrix.device), basis
