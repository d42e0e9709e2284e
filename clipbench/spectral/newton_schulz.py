"""Spectral clipping by matrix products alone: no factorisation, no value read by the host, for GPUs.

Spectral clipping (arXiv 2605.11838), C_τ(G) = U diag(min(s, τ)) Vᵀ, from min(s, τ) = ½ (s + τ − (τ − s) sign(τ − s)):

    O = polar(G) = U Vᵀ      H = O Gᵀ = U diag(s) Uᵀ      P = sign(τI − H)      C = ½ (G + τO − P (τO − G))

polar and sign are compositions of K odd quintics (`polynomials.py`), a generalised Newton–Schulz iteration. Where the
polar factor has not converged, at s ≪ σ_max, O has a factor c < 1 and C is still s, exactly: only s ≥ τ must be
resolved, so K limits σ_max/τ to 1/l_K, and values within l_K σ_max of τ keep an error of at most their distance to τ.

Error, ‖C − C*‖_F / ‖C*‖_F, in float32: about l_K · σ_max/τ, and never below a floor of rounding, 1e-5 up to
σ_max/τ = 100 and 1e-7 σ_max/τ beyond. With the products in bfloat16 the floor is 2e-2 up to σ_max/τ = 10 and 5e-2 at
100, and more than 8 quintics do not lower it.

    K      6      8      10     12     14
    l_K    5e-3   4e-4   3e-5   2e-6   2e-7
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from clipbench.spectral.polynomials import Quintic, resolved, sign_polynomials
from clipbench.spectral.report import SpectralReport
from clipbench.spectral.shapes import wide

ITERATIONS = 10  # K in float32: l_K = 3e-5
CONVERGED = 1e-7
CUSHION = {torch.float64: 1e-3, torch.float32: 1e-3, torch.bfloat16: 0.03, torch.float16: 0.01}
SQUARINGS = 14  # of the Gram matrix: σ_max to ln(n) / 2^15 of itself, whatever the gaps


class Spectrum:
    """σ_max of a batch of wide matrices X (B, n, m) with entries of at most 1, from above and from below.

    With A = X Xᵀ and N = 2^SQUARINGS: σ_max ≤ tr(Aᴺ)^{1/2N} = `bound`, at most n^{1/2N} too large; and a column v
    of Aᴺ gives σ_max ≥ ‖Xᵀv‖ / ‖v‖ = `sigma`. Both have shape (B,).
    """

    def __init__(self, matrix: Tensor) -> None:
        power = matrix @ matrix.mT
        logarithm = torch.zeros(matrix.shape[0], dtype=matrix.dtype, device=matrix.device)
        tiny = torch.finfo(matrix.dtype).tiny
        for index in range(SQUARINGS + 1):
            if index:
                power = power @ power
            # Every second time is enough: between two, the trace falls to n⁻³ at the least.
            if index % 2 == 0:
                trace = power.diagonal(dim1=-2, dim2=-1).sum(-1).clamp_min(tiny)
                power = power / trace[:, None, None]
                logarithm = logarithm + trace.log() / 2**index
        self.bound = (logarithm / 2).exp() * (1 + 1e-5)
        column = power.diagonal(dim1=-2, dim2=-1).argmax(-1)
        vector = power.gather(2, column[:, None, None].expand(-1, power.shape[1], 1))
        image = torch.linalg.vector_norm(matrix.mT @ vector, dim=(1, 2))
        self.sigma = image / torch.linalg.vector_norm(vector, dim=(1, 2)).clamp_min(tiny)


def _quintics(iterations: int, dtype: torch.dtype) -> tuple[Quintic, ...]:
    cushion = CUSHION[dtype]
    accuracy = max(CONVERGED, 4 * cushion**3)  # the last quintic, at the end of its widened interval
    return sign_polynomials(resolved(iterations, accuracy, cushion), iterations, cushion)[0]


def polar(matrix: Tensor, iterations: int) -> Tensor:
    """U Vᵀ of a batch of wide matrices (B, n, m) with σ_max ≤ 1; singular values ≥ l_K are brought to 1."""
    for a, b, c in _quintics(iterations, matrix.dtype):
        square = matrix @ matrix.mT
        factor = torch.baddbmm(square, square, square, beta=b, alpha=c)
        matrix = torch.baddbmm(matrix, factor, matrix, beta=a)
    return matrix


def sign(matrix: Tensor, iterations: int) -> Tensor:
    """Matrix sign of a batch of symmetric matrices (B, n, n) with eigenvalues in [−1, 1]."""
    for a, b, c in _quintics(iterations, matrix.dtype):
        square = matrix @ matrix
        factor = torch.baddbmm(square, square, square, beta=b, alpha=c)
        matrix = torch.baddbmm(matrix, factor, matrix, beta=a)
        matrix = (matrix + matrix.mT) / 2
    return matrix


def _clip_unit(matrix: Tensor, tau: Tensor, bound: Tensor, iterations: int) -> tuple[Tensor, Tensor]:
    """Clip a batch with σ_max ≤ bound (B,) to tau (B,), in the batch's dtype; also the count above τ."""
    scale = bound[:, None, None].to(matrix.dtype)
    level = tau[:, None, None].to(matrix.dtype)
    orthogonal = polar(matrix / scale, iterations)
    symmetric = orthogonal @ matrix.mT
    symmetric = (symmetric + symmetric.mT) / 2
    identity = torch.eye(matrix.shape[1], dtype=matrix.dtype, device=matrix.device)
    projector = sign((level * identity - symmetric) / torch.maximum(scale, level), iterations)
    goal = level * orthogonal
    clipped = (matrix + goal - projector @ (goal - matrix)) / 2
    trace = projector.diagonal(dim1=-2, dim2=-1).float().sum(-1)
    return clipped, ((matrix.shape[1] - trace) / 2).round().to(torch.int64)


def newton_schulz(
    matrix: Tensor, tau: Tensor, iterations: int = ITERATIONS, dtype: torch.dtype | None = None
) -> tuple[Tensor, SpectralReport]:
    """Clip a batch (B, n, m) to tau (B,); `dtype` is that of the products (default: the batch's, float32 at least).

    A matrix that is not finite comes back as it is, and so does, to the last bit, one with σ_max ≤ τ as bounded.
    Norms and σ_max are taken in float32 at least. Raises ValueError for iterations < 3.
    """
    if iterations < 3:
        raise ValueError(f"iterations must be >= 3, got {iterations}")
    precise = torch.promote_types(matrix.dtype, torch.float32)
    largest = matrix.abs().amax(dim=(1, 2)).to(precise)
    finite = torch.isfinite(largest)
    unit = torch.where(finite & (largest > 0), largest, 1.0)
    work = wide(torch.where(finite[:, None, None], matrix.to(precise) / unit[:, None, None], 0.0))
    spectrum = Spectrum(work)
    bound = spectrum.bound.clamp_min(torch.finfo(precise).tiny)
    level = tau.to(precise) / unit
    above = finite & (bound > level)
    clipped, count = _clip_unit(work.to(dtype or precise), torch.where(above, level, bound), bound, iterations)
    clipped = clipped.to(precise) * unit[:, None, None]
    if work.shape[1:] != matrix.shape[1:]:
        clipped = clipped.mT
    result = torch.where(above[:, None, None], clipped.to(matrix.dtype), matrix)
    sigma = torch.where(finite, spectrum.sigma * unit, math.nan).float()
    return result, SpectralReport(sigma, torch.where(above, count, 0), ~finite, torch.zeros_like(finite))


def newton_schulz_(matrices: Sequence[Tensor], tau: Tensor) -> SpectralReport:
    """Clip matrices of one shape in place, in one batch."""
    # TF32 would keep 10 bits of the products.
    allowed = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    try:
        result, report = newton_schulz(torch.stack(list(matrices)), tau)
    finally:
        torch.backends.cuda.matmul.allow_tf32 = allowed
    torch._foreach_copy_(list(matrices), list(result.unbind()))
    return report
