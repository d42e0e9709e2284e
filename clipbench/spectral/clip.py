"""Spectral clipping of matrices: one entry to all backends."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from clipbench.spectral.auto import BACKENDS, Backend, choose
from clipbench.spectral.exact import exact_
from clipbench.spectral.newton_schulz import newton_schulz_
from clipbench.spectral.randomized import randomized_one_
from clipbench.spectral.report import SpectralReport, gather
from clipbench.spectral.svd import svd_


def _randomized_(matrices: Sequence[Tensor], tau: Tensor) -> SpectralReport:
    """The adaptive form, cold, from a generator of this call's own."""
    generator = torch.Generator().manual_seed(0)
    reports = [
        randomized_one_(matrix, bound, None, 0, 0, None, generator)[0]
        for matrix, bound in zip(matrices, tau.tolist(), strict=True)
    ]
    return gather(reports, tau.device)


FUNCTIONS = {"svd": svd_, "newton_schulz": newton_schulz_, "randomized": _randomized_}


def check_backend(backend: str) -> None:
    """Raises ValueError for a name that is no backend."""
    if backend not in BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(BACKENDS)}, got {backend}")


def clip_matrices_(
    matrices: Sequence[Tensor],
    tau: Tensor,
    backend: Backend = "auto",
    adaptive: bool = True,
    norms: Tensor | None = None,
) -> SpectralReport:
    """Clip matrices of one shape, dtype and device in place; tau (len(matrices),). What `auto` means: `choose`.

    norms: the Frobenius norms (len(matrices),), which spare `exact` a pass over the entries.
    """
    if backend == "auto":
        first = matrices[0]
        backend = choose((first.shape[0], first.shape[1]), first.dtype, first.device.type, adaptive)
    if backend == "exact":
        return exact_(matrices, tau, norms)
    return FUNCTIONS[backend](matrices, tau)


@torch.no_grad()
def clip_singular_values(matrix: Tensor, tau: float | Tensor, backend: Backend = "auto") -> tuple[Tensor, Tensor]:
    """Spectral clipping (arXiv 2605.11838): C_τ(G) = U diag(min(s, τ)) Vᵀ of G = U diag(s) Vᵀ.

    Returns (C_τ(G), σ_max): the shape and dtype of matrix, and (...) in float32, before clipping.
    matrix: (..., n, m), of a floating dtype, any rank, zero and huge entries too; never changed. tau: > 0 or ∞, a
    float or a tensor that broadcasts to the leading dimensions (...), which is not checked, so that nothing waits for a
    device: its entries ≤ 0 clip to zero, and NaN gives NaN. Every backend keeps its bound whatever the size of the
    entries and of σ_max/τ. A matrix that is not finite comes back as it is with σ_max = NaN. Not differentiable.
    backend: `svd` (float64 SVD, the reference), `exact` (relative error ≤ 1e-5, waits for the device), `randomized`
    (cold and adaptive; `randomized_clip` takes a rank, a basis and a generator), `newton_schulz` (products alone), or
    `auto` (`choose`). Raises ValueError for a matrix with fewer than two dimensions, a dtype that is not floating, a
    float tau ≤ 0 or an unknown backend.

    >>> clipped, sigma_max = clip_singular_values(torch.diag(torch.tensor([3.0, 1.0])), 2.0)
    >>> clipped.diagonal().tolist(), float(sigma_max)
    ([2.0, 1.0], 3.0)
    """
    check_backend(backend)
    if matrix.ndim < 2:
        raise ValueError(f"matrix must have at least two dimensions, got {matrix.ndim}")
    if not matrix.dtype.is_floating_point:
        raise ValueError(f"matrix must have a floating dtype, got {matrix.dtype}")
    if not isinstance(tau, Tensor) and not tau > 0:
        raise ValueError(f"tau must be > 0, got {tau}")
    batch = matrix.shape[:-2]
    if matrix.numel() == 0:
        return matrix.detach().clone(), torch.zeros(batch, device=matrix.device)
    result = matrix.clone(memory_format=torch.contiguous_format).reshape(-1, *matrix.shape[-2:])
    levels = torch.as_tensor(tau, dtype=torch.float64, device=matrix.device).expand(batch).reshape(-1)
    report = clip_matrices_(list(result.unbind()), levels, backend)
    return result.reshape(matrix.shape), report.sigma_max.float().reshape(batch)
