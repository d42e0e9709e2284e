"""The reference: spectral clipping (arXiv 2605.11838) as it is written, with an SVD in float64."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from clipbench.spectral.report import LEFT, LinAlgError, MatrixReport, SpectralReport, gather


def clip_by_svd(matrix: Tensor, tau: float) -> MatrixReport:
    """C_τ(G) = U diag(min(s, τ)) Vᵀ in place; left as it is where it is not finite or LAPACK does not converge.

    Where no value exceeds τ the matrix is not touched, so τ = ∞ is the identity to the last bit. τ ≤ 0 gives zero, NaN
    gives NaN.
    """
    work = matrix.double()
    if not bool(torch.isfinite(work).all()):
        return LEFT
    try:
        left, sigma, right = torch.linalg.svd(work, full_matrices=False)
    except LinAlgError:
        return LEFT
    count = int((sigma > tau).sum())
    if count or math.isnan(tau):
        matrix.copy_((left * sigma.clamp_max(max(tau, 0.0))) @ right)
    return MatrixReport(float(sigma[0]), count)


def svd_(matrices: Sequence[Tensor], tau: Tensor) -> SpectralReport:
    """`clip_by_svd` for each matrix with its τ."""
    reports = [clip_by_svd(matrix, bound) for matrix, bound in zip(matrices, tau.tolist(), strict=True)]
    return gather(reports, tau.device)
