"""Spectral clipping by matrix products alone: no factorisation, no value read by the host, for GPUs.

Spectral clipping (arXiv 2605.11838), C_τ(G) = U diag(min(s, τ)) Vᵀ, from min(s, τ) = ½ (s + τ − (τ − s) sign(τ − s)):

    O = polar(G) = U Vᵀ      H = O Gᵀ = U diag(s) Uᵀ      P = sign(τI − H)      C = ½ (G + τO − P (τO − G))

polar and sign are compositions of K odd quintics (`polynomials.py`), a generalised Newton–Schulz iteration. Where the
polar factor has not converged, at s ≪ σ_max, O has a factor c < 1 and C is still s, exactly: only s ≥ τ must be
resolved, and values within l_K σ_max of τ keep an error of at most their distance to τ.

Rounding leaves an error of some eps σ_max in C, so the dtype of the products and K decide how far below σ_max a τ is
reached: REACH. By default products are in float64, which some GPUs have at a small part of float32's speed: float32
leaves an error of 1e-7 σ_max/τ, which cannot be told from the values sought. Beyond REACH, where a float32 matrix has
no digits left, G is clipped at σ_max/REACH and the result multiplied with τ REACH/σ_max: nothing
exceeds τ (1 + l_K REACH), every value above σ_max/REACH is right, and those below come out too small by that factor.

Error, ‖C − C*‖_F / ‖C*‖_F, of all values above σ_max/REACH: in float64 1e-7 up to σ_max/τ = 1e8, 1e-4 up to REACH; with
products in float32 1e-5 up to σ_max/τ = 100 and 1e-7 σ_max/τ beyond; in bfloat16 2e-2 up to σ_max/τ = 10.

    K      6      8      10     12     18     24
    l_K    3e-3   4e-4   3e-5   2e-6   3e-9   1e-12     (float32 up to 12, float64 from 18)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from clipbench.spectral.polynomials import Quintic, resolved, sign_polynomials
from clipbench.spectral.powers import exponent_of, times_power
from clipbench.spectral.report import SpectralReport
from clipbench.spectral.shapes import wide

ITERATIONS = {torch.float64: 24, torch.float32: 24, torch.bfloat16: 18, torch.float16: 18}  # K, by the matrix's dtype
REACH = {torch.float64: 1e10, torch.float32: 1e4, torch.bfloat16: 30.0, torch.float16: 100.0}  # and at most 1/(4 l_K)
CONVERGED = {torch.float64: 1e-15, torch.float32: 1e-7, torch.bfloat16: 1e-7, torch.float16: 1e-7}
CUSHION = {torch.float64: 1e-5, torch.float32: 1e-3, torch.bfloat16: 0.03, torch.float16: 0.01}
CAP = 1e100  # τ is cut to it: nothing of a scaled matrix is above
SQUARINGS = 14  # of the Gram matrix: σ_max to ln(n) / 2^15 of itself, whatever the gaps


class SigmaBounds:
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
        self.bound = (logarithm / 2).exp() * (1 + 1e-4)  # rounding allowed for
        column = power.diagonal(dim1=-2, dim2=-1).argmax(-1)
        vector = power.gather(2, column[:, None, None].expand(-1, power.shape[1], 1))
        image = torch.linalg.vector_norm(matrix.mT @ vector, dim=(1, 2))
        self.sigma = image / torch.linalg.vector_norm(vector, dim=(1, 2)).clamp_min(tiny)


def least(iterations: int, dtype: torch.dtype) -> float:
    """l_K with products in this dtype."""
    cushion = CUSHION[dtype]
    # The accuracy of the last quintic, at the end of its widened interval.
    return resolved(iterations, max(CONVERGED[dtype], 4 * cushion**3), cushion)


def reach(iterations: int, dtype: torch.dtype) -> float:
    """σ_max/τ up to which products in this dtype resolve τ."""
    return min(REACH[dtype], 1 / (4 * least(iterations, dtype)))


def _quintics(iterations: int, dtype: torch.dtype) -> tuple[Quintic, ...]:
    return sign_polynomials(least(iterations, dtype), iterations, CUSHION[dtype])[0]


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
    trace = projector.diagonal(dim1=-2, dim2=-1).float().sum(-1).nan_to_num()
    return clipped, ((matrix.shape[1] - trace) / 2).round().to(torch.int64)


class Unit(NamedTuple):
    """A batch (B, n, m) scaled by powers of two: work (wide, entries of at most 1; zero where not finite), its bounds.

    exponent (B,): matrix = 2^exponent work; level (B,): τ as scaled, float64, in [0, ∞); finite (B,).
    """

    work: Tensor
    bounds: SigmaBounds
    exponent: Tensor
    level: Tensor
    finite: Tensor

    @property
    def above(self) -> Tensor:
        """Members that may have a value above τ; a τ that is NaN counts."""
        return self.finite & ~(self.bounds.bound <= self.level)

    def sigma(self) -> Tensor:
        """σ_max in float64, NaN where the matrix is not finite."""
        sigma = times_power(self.bounds.sigma.double(), self.exponent)
        return torch.where(self.finite, sigma, math.nan)

    def reached(self, far: float) -> Tensor:
        """The τ that is clipped at, (B,): σ_max itself where nothing is above, and no less than σ_max / far."""
        bound = self.bounds.bound.double()
        return torch.where(self.above, torch.maximum(self.level, bound / far), bound)

    def restored(self, clipped: Tensor, reached: Tensor, tau: Tensor, matrix: Tensor, changed: Tensor) -> Tensor:
        """`clipped` to `reached`, as large and as tall as the matrix; the matrix itself where it is not `changed`."""
        scaled = times_power(clipped.double(), self.exponent[:, None, None])
        result = torch.where(reached > self.level, tau / reached, 1.0)
        # Where τ is not reached, τ/reached takes the place of 2^exponent, which the product might not survive.
        scaled = torch.where((reached > self.level)[:, None, None], clipped.double() * result[:, None, None], scaled)
        if clipped.shape[1:] != matrix.shape[1:]:
            scaled = scaled.mT
        return torch.where(changed[:, None, None], scaled.to(matrix.dtype), matrix)


def in_unit(matrix: Tensor, tau: Tensor, products: torch.dtype) -> Unit:
    """Scale a batch and bound its singular values; σ_max in float32, or float64 for float64."""
    largest = matrix.abs().amax(dim=(1, 2))
    finite = torch.isfinite(largest)
    exponent = exponent_of(largest)
    whole = torch.where(finite[:, None, None], matrix, 0.0).to(torch.promote_types(products, torch.float32))
    scaled = times_power(whole, -exponent[:, None, None])
    work = wide(scaled)
    measured = work if matrix.dtype == torch.float64 else work.float()
    level = times_power(tau.double().clamp(0, CAP), -exponent).clamp_max(CAP)
    return Unit(work, SigmaBounds(measured), exponent, level, finite)


def newton_schulz(
    matrix: Tensor, tau: Tensor, iterations: int | None = None, dtype: torch.dtype | None = None
) -> tuple[Tensor, SpectralReport]:
    """Clip a batch (B, n, m) to tau (B,); `dtype` is that of the products, `iterations` is K.

    A matrix that is not finite comes back as it is, and so does, to the last bit, one with σ_max ≤ τ as bounded. τ ≤ 0
    gives zero, NaN gives NaN. Norms and σ_max are taken in float32 at least; count_above leaves out values below
    σ_max / REACH. Raises ValueError for iterations < 3.
    """
    if iterations is not None and iterations < 3:
        raise ValueError(f"iterations must be >= 3, got {iterations}")
    products = dtype or torch.float64
    unit = in_unit(matrix, tau, products)
    bound = unit.bounds.bound.to(unit.work.dtype).clamp_min(torch.finfo(unit.work.dtype).tiny)
    iterations = iterations or ITERATIONS[matrix.dtype]
    reached = unit.reached(reach(iterations, products))
    clipped, count = _clip_unit(unit.work.to(products), reached, bound, iterations)
    result = unit.restored(clipped, reached, tau.double().clamp_min(0), matrix, unit.above)
    zero = torch.zeros_like(unit.finite)
    return result, SpectralReport(unit.sigma(), torch.where(unit.above, count, 0), ~unit.finite, zero)


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
