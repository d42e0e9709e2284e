"""The proof that a block iteration missed nothing above τ."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from clipbench.spectral.ritz import Leading

ROUNDING = 16  # in units of eps ‖A‖_F
HALVED = 256  # sides above it are factorised in two halves


def nothing_missed(gram: Tensor, total: float, found: Leading, above: float) -> bool:
    """Whether every eigenvalue of `gram` outside found's first pairs is ≤ `above`; False means "not shown".

    total: ‖A‖_F. First by norms (`_by_norms`), unless what is left of ‖A‖_F² without the pairs found rules it out, with
    the rounding in that difference allowed for. Where that is too coarse (a flat bulk), the Cholesky factorisation of
    above · I − (A less the pairs above τ): it exists if and only if that matrix is positive definite.
    """
    left = total**2 - sum(value**2 for value in found.values)
    if left <= above**2 + ROUNDING * torch.finfo(gram.dtype).eps * total**2 and _by_norms(gram, total, found, above):
        return True
    shifted = _deflated(gram, found, found.above).neg_()
    shifted.diagonal().add_(above)
    return _positive_definite(shifted)


def _by_norms(gram: Tensor, total: float, found: Leading, above: float) -> bool:
    """The same by the norms of blocks; ‖P A P‖₂ ≤ ‖A − Σ θ u uᵀ‖_F."""
    rest = float(torch.linalg.vector_norm(_deflated(gram, found, len(found.values))))
    return _room(rest + ROUNDING * torch.finfo(gram.dtype).eps * total, found, above)


def nothing_missed_by_trace(norm: float, found: Leading, above: float) -> bool:
    """The same without A: ‖P A P‖₂ ≤ tr(P A P) = ‖G‖_F² − Σ θ; norm is ‖G‖_F."""
    rest = norm**2 - sum(found.values)
    return _room(rest + ROUNDING * torch.finfo(found.basis.dtype).eps * norm**2, found, above)


def _room(rest: float, found: Leading, above: float) -> bool:
    """Whether A less the pairs above τ is < above · I, by the norms of blocks: sufficient, not necessary.

    Seen in the Ritz vectors and their complement P, that matrix is [[Θ, C], [Cᵀ, P A P]], with Θ diagonal (0 for a
    pair taken off), the residuals ρ as the norms of C's rows, and ‖P A P‖₂ ≤ rest. By the Schur complement it is
    < above · I where Σ ρ²/(above − θ) < above − rest.
    """
    kept = [0.0] * found.above + found.values[found.above :]
    pairs = zip(kept, found.residuals, strict=True)
    taken = sum(residual**2 / (above - value) if value < above else math.inf for value, residual in pairs)
    return taken < above - rest


def _deflated(gram: Tensor, found: Leading, count: int) -> Tensor:
    """A − Σ θ u uᵀ over the first `count` pairs."""
    vectors = found.basis[:count]
    values = torch.tensor(found.values[:count], dtype=gram.dtype)
    return torch.addmm(gram, vectors.mT * values, vectors, alpha=-1)


def _positive_definite(matrix: Tensor) -> bool:
    """Whether a Cholesky factorisation exists; in two halves, which LAPACK finishes in 0.7 of the time at n = 384."""
    half = matrix.shape[0] // 2 if matrix.shape[0] > HALVED else 0
    if half:
        factor, info = torch.linalg.cholesky_ex(matrix[:half, :half])
        if int(info):
            return False
        coupling = torch.linalg.solve_triangular(factor, matrix[:half, half:], upper=False)
        matrix = torch.addmm(matrix[half:, half:], coupling.mT, coupling, alpha=-1)
    return int(torch.linalg.cholesky_ex(matrix).info) == 0
