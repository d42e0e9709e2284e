"""Soft spectral clipping (SPECTRA, arXiv 2603.14315): σ → σ / √(1 + σ²/c²)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from clipbench.spectral.auto import Backend, choose
from clipbench.spectral.gram import gram
from clipbench.spectral.newton_schulz import ITERATIONS, Spectrum, polar
from clipbench.spectral.report import LEFT, LinAlgError, Outcome, SpectralReport, gather
from clipbench.spectral.shapes import wide


def _soft_one_(matrix: Tensor, level: float) -> Outcome:
    """(I + A/c²)^{-1/2} G in place, A = G Gᵀ, by the eigendecomposition of A in float64."""
    double = wide(matrix).double()
    norm = float(torch.linalg.vector_norm(double))
    if not math.isfinite(norm):
        return LEFT
    if norm == 0 or math.isinf(level):
        return Outcome(norm and float(torch.linalg.matrix_norm(double, 2)))
    try:
        values, vectors = torch.linalg.eigh(gram(double / norm))
    except LinAlgError:
        return LEFT
    sigma = values.clamp_min(0).sqrt() * norm
    factor = (vectors / torch.sqrt(1 + (sigma / level) ** 2)) @ vectors.mT
    wide(matrix).copy_(factor @ double)
    return Outcome(float(sigma[-1]), int((sigma > level).sum()))


def _soft_products(matrix: Tensor, level: Tensor) -> tuple[Tensor, SpectralReport]:
    """The same by matrix products: c times the left block of polar([G/c, I]) (singular values √(1 + σ²/c²))."""
    largest = matrix.abs().amax(dim=(1, 2)).float()
    finite = torch.isfinite(largest)
    unit = torch.where(finite & (largest > 0), largest, 1.0)
    work = wide(torch.where(finite[:, None, None], matrix.float() / unit[:, None, None], 0.0))
    spectrum = Spectrum(work)
    soft = torch.isfinite(level)
    scale = torch.where(soft, level.float() / unit, 1.0)
    length = torch.hypot(scale, spectrum.bound)[:, None, None]
    identity = torch.eye(work.shape[1], device=work.device) * scale[:, None, None]
    stacked = polar(torch.cat([work, identity], dim=2) / length, ITERATIONS)
    result = stacked[:, :, : work.shape[2]] * level.float()[:, None, None]
    if work.shape[1:] != matrix.shape[1:]:
        result = result.mT
    sigma = torch.where(finite, spectrum.sigma * unit, math.nan)
    zero = torch.zeros_like(finite)
    changed = (finite & soft)[:, None, None]
    report = SpectralReport(sigma, (sigma > level).to(torch.int64), ~finite, zero)
    return torch.where(changed, result.to(matrix.dtype), matrix), report


def soft_matrices_(
    matrices: Sequence[Tensor], level: Tensor, backend: Backend = "auto", adaptive: bool = True
) -> SpectralReport:
    """Soft-clip matrices of one shape in place, c = level (len(matrices),); "exact", "newton_schulz" or "auto".

    count_above is 1 where σ_max > c, in the form by products, which does not see the others.
    """
    if backend == "auto":
        first = matrices[0]
        backend = choose((first.shape[0], first.shape[1]), first.dtype, first.device.type, adaptive)
    if backend == "newton_schulz":
        result, report = _soft_products(torch.stack(list(matrices)), level)
        torch._foreach_copy_(list(matrices), list(result.unbind()))
        return report
    outcomes = [_soft_one_(matrix, bound) for matrix, bound in zip(matrices, level.tolist(), strict=True)]
    return gather(outcomes, level.device)
