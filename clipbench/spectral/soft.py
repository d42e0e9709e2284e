"""Soft spectral clipping (SPECTRA, arXiv 2603.14315): σ → σ / √(1 + σ²/c²)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from clipbench.spectral.auto import Backend, choose
from clipbench.spectral.gram import gram
from clipbench.spectral.newton_schulz import ITERATIONS, in_unit, polar, reach
from clipbench.spectral.report import LEFT, LinAlgError, MatrixReport, SpectralReport, gather
from clipbench.spectral.shapes import wide

SQUARED = 1e3  # ‖G‖_F/c from which values near c are lost in squares: rounding is then 1e-10 of them, squared


def _soft_one_(matrix: Tensor, level: float) -> MatrixReport:
    """G (I + B/c²)^{-1/2} in place, B = Gᵀ G, in float64: by the eigendecomposition of the shorter side's Gram matrix.

    Beyond σ_max/c = SQUARED the squares have lost the values near c: by SVD.
    """
    double = wide(matrix).double()
    largest = float(double.abs().amax())
    if not math.isfinite(largest):
        return LEFT
    norm = largest and float(torch.linalg.vector_norm(double / largest)) * largest
    if math.isnan(level) or level <= 0:
        matrix.fill_(math.nan if math.isnan(level) else 0.0)
    if norm == 0 or math.isinf(level) or not level > 0:
        return MatrixReport(norm and float(torch.linalg.matrix_norm(double, 2)), int(norm > 0 and level <= 0))
    try:
        if norm > SQUARED * level:
            left, sigma, right = torch.linalg.svd(double, full_matrices=False)
            damped = sigma / torch.hypot(torch.ones_like(sigma), sigma / level)
            result, top = (left * damped) @ right, float(sigma[0])
        else:
            values, vectors = torch.linalg.eigh(gram(double / norm))
            sigma = values.clamp_min(0).sqrt() * norm
            result, top = (vectors * torch.rsqrt(1 + (sigma / level) ** 2)) @ vectors.mT @ double, float(sigma[-1])
    except LinAlgError:
        return LEFT
    wide(matrix).copy_(result)
    return MatrixReport(top, int((sigma > level).sum()))


def _soft_products(matrix: Tensor, level: Tensor) -> tuple[Tensor, SpectralReport]:
    """The same by matrix products: c times the left block of polar([G/c, I]) (singular values √(1 + σ²/c²)).

    As in `newton_schulz`, c is no less than σ_max over REACH, and the result is scaled.
    """
    iterations = ITERATIONS[matrix.dtype]
    unit = in_unit(matrix, level, torch.float64)
    bound = unit.bounds.bound.double().clamp_min(torch.finfo(torch.float64).tiny)
    soft = torch.isfinite(level) | level.isnan()
    reached = torch.where(soft, torch.maximum(unit.level, bound / reach(iterations, torch.float64)), 1.0)
    length = torch.hypot(reached, bound)[:, None, None]
    identity = torch.eye(unit.work.shape[1], dtype=unit.work.dtype, device=matrix.device)
    stacked = torch.cat([unit.work / length, identity * (reached[:, None, None] / length)], dim=2)
    damped = polar(stacked, iterations)[:, :, : unit.work.shape[2]] * reached[:, None, None]
    result = unit.restored(damped, reached, level.double().clamp_min(0), matrix, unit.finite & soft)
    sigma = unit.sigma()
    return result, SpectralReport(sigma, (sigma > level).to(torch.int64), ~unit.finite, torch.zeros_like(unit.finite))


def soft_matrices_(
    matrices: Sequence[Tensor], level: Tensor, backend: Backend = "auto", adaptive: bool = True
) -> SpectralReport:
    """Soft-clip matrices of one shape in place, c = level (len(matrices),); "exact", "newton_schulz" or "auto".

    Nothing exceeds c, whatever σ_max/c. c ≤ 0 gives zero, NaN gives NaN; ∞ leaves the matrix as it is, and so does a
    matrix that is not finite.

    count_above is 1 where σ_max > c, in the form by products, which does not see the others.
    """
    if backend == "auto":
        first = matrices[0]
        backend = choose((first.shape[0], first.shape[1]), first.dtype, first.device.type, adaptive)
    if backend == "newton_schulz":
        result, report = _soft_products(torch.stack(list(matrices)), level)
        torch._foreach_copy_(list(matrices), list(result.unbind()))
        return report
    reports = [_soft_one_(matrix, bound) for matrix, bound in zip(matrices, level.tolist(), strict=True)]
    return gather(reports, level.device)
