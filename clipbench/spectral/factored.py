"""Spectral clipping of a product that is never formed: G = aᵀδ, r rows each, with r below G's sides.

A linear layer's gradient is such a product, with the samples as rows. All there is to know of its singular values lies
in two r × r matrices, K_A = a aᵀ and K_B = δ δᵀ, in float64, of rows scaled by powers of two (`balance.py`):
‖G‖_F² = Σ K_A ∘ K_B, and σ² are the eigenvalues of K_A K_B. On the host, member by member, the first of these that
shows its answer right:
1. ‖G‖_F ≤ τ: nothing to do, seen in the factors' own dtype with its rounding allowed for;
2. ‖G‖_F² − σ₁² ≤ τ²: σ₁ alone is above, and δ loses a part of rank one (`top_pair.py`);
3. a Cholesky factor of each gives orthonormal rows, and a core (r, r) with G's singular values: one eigh (`core.py`);
4. the same by QR and SVD, where the squares in 3 would lose digits.
On an accelerator QR and `newton_schulz` for all members at once: nothing waits for the device.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from clipbench.spectral.balance import balanced
from clipbench.spectral.core import Core, core_by_products
from clipbench.spectral.powers import exponent_of, times_power
from clipbench.spectral.product_batch import ProductBatch, Sorted

TOLERANCE = {torch.float32: 1e-6, torch.float64: 1e-12}  # error wanted, relative to ‖C_τ(G)‖_F
CAP = 1e100  # τ is cut to it where rows are scaled to 1: its square stays finite, and nothing is above it
FactoredBackend = Literal["auto", "exact", "newton_schulz"]


@torch.no_grad()
def clip_factored(
    a: Tensor, delta: Tensor, tau: float | Tensor, backend: FactoredBackend = "auto", measure: bool = True
) -> tuple[Tensor, Tensor, Tensor]:
    """Spectral clipping (arXiv 2605.11838) of G = aᵀδ from its factors: U diag(min(s, τ)) Vᵀ = a'ᵀδ'.

    Returns (a', δ', σ_max): the shapes and dtypes of a and delta, and (...) in float32 (float64 for float64 factors),
    before clipping. G itself, (..., n, m), is never formed. Relative error (Frobenius norm) 1e-5 in float32, 1e-10 in
    float64, and no value left above τ (1 + 1e-5), whatever the size of the rows and σ_max/τ; below 1e-10 σ_max float64
    tells no directions apart, and what is left there keeps to the bound alone.
    a: (..., r, n); delta: (..., r, m): floating, the same leading dimensions; never changed, and given back as they are
    where nothing is above τ. tau: a float > 0 or ∞, or a tensor that broadcasts to (...), of which 0 and less clip to
    zero and NaN gives NaN. A member that is not finite comes back as it is with σ_max = NaN. Not differentiable.
    backend: `exact` reads values on the host and takes for each member the cheapest way that it can show right;
    `newton_schulz` reads none; `auto` is `exact` on a CPU and `newton_schulz` elsewhere. measure=False lets `exact`
    leave σ_max at NaN where ‖G‖_F ≤ τ, which is faster. Raises ValueError for arguments that do not fit.

    >>> a, delta = torch.randn(4, 3, 10), torch.randn(4, 3, 20)  # four gradients (10, 20) of three samples each
    >>> first, second, sigma_max = clip_factored(a, delta, 2.0)
    >>> bool((torch.linalg.matrix_norm(first.mT @ second, 2) <= 2.0001).all())
    True
    """
    batch = _check(a, delta, tau, backend)
    exact = backend == "exact" or (backend == "auto" and a.device.type == "cpu")
    dtype = torch.promote_types(a.dtype, torch.float32)
    level = torch.as_tensor(tau, dtype=torch.float64, device=a.device).expand(batch).reshape(-1)
    rows = tuple(factor.reshape(-1, *factor.shape[-2:]).to(dtype) for factor in (a, delta))
    if a.numel() == 0 or delta.numel() == 0:
        return a, delta, torch.zeros(batch, dtype=dtype, device=a.device)
    way = _exact if exact else _products
    left, right, sigma = way(rows[0], rows[1], level, measure)
    sigma = sigma.to(dtype).reshape(batch)
    if left is rows[0] and right is rows[1]:
        return a, delta, sigma
    return left.to(a.dtype).reshape(a.shape), right.to(a.dtype).reshape(delta.shape), sigma


def _check(a: Tensor, delta: Tensor, tau: float | Tensor, backend: str) -> torch.Size:
    """The leading dimensions. Raises ValueError."""
    if backend not in ("auto", "exact", "newton_schulz"):
        raise ValueError(f"backend must be auto, exact or newton_schulz, got {backend}")
    if a.ndim < 2 or not a.dtype.is_floating_point:
        raise ValueError(f"a must be floating with at least two dimensions, got {a.dtype} of shape {tuple(a.shape)}")
    if delta.shape[:-1] != a.shape[:-1] or delta.dtype != a.dtype:
        got = f"{delta.dtype} of shape {tuple(delta.shape)}"
        raise ValueError(f"delta must be {a.dtype} of shape {(*a.shape[:-1], 'm')}, got {got}")
    if not isinstance(tau, Tensor) and not tau > 0:
        raise ValueError(f"tau must be > 0, got {tau}")
    return a.shape[:-2]


def _products(a: Tensor, delta: Tensor, tau: Tensor, measure: bool) -> Core:
    """All members by matrix products, which measure σ_max anyway."""
    pair = balanced(a, delta)
    level = _scaled(tau, pair.exponent)
    left, right = (
        torch.where(pair.finite[:, None, None], rows, 0.0)
        for rows in pair.scaled(torch.arange(len(tau), device=tau.device))
    )
    first, second, sigma = core_by_products(left, right, level)
    above = (pair.finite & ~(sigma <= level))[:, None, None]
    first, second = _unscaled(first, second, torch.fmin(sigma, level), pair.exponent)
    sigma = torch.where(pair.finite, times_power(sigma, pair.exponent), math.nan)
    return torch.where(above, first.to(a.dtype), a), torch.where(above, second.to(a.dtype), delta), sigma


def _scaled(tau: Tensor, exponent: Tensor) -> Tensor:
    """τ · 2^−exponent, from 0 to CAP; NaN as it is."""
    return times_power(tau.clamp(0, CAP), -exponent).clamp_max(CAP)


def _unscaled(first: Tensor, second: Tensor, size: Tensor, exponent: Tensor) -> tuple[Tensor, Tensor]:
    """Both factors with 2^exponent shared out, so that entries are alike; size: σ_max of their product, scaled."""
    half = ((exponent_of(size) + exponent) // 2)[:, None, None]
    return times_power(first, half), times_power(second, exponent[:, None, None] - half)


def _below(a: Tensor, delta: Tensor, tau: Tensor) -> Tensor:
    """Members with ‖aᵀδ‖_F ≤ τ for certain, (B,), in the factors' own dtype; never those that overflow or are NaN."""
    info = torch.finfo(a.dtype)
    left, right = a @ a.mT, delta @ delta.mT
    traces = [gram.diagonal(dim1=1, dim2=2).sum(1, dtype=torch.float64) for gram in (left, right)]
    found = (left * right).sum((1, 2)).double()
    length, rows = max(a.shape[2], delta.shape[2]), a.shape[1]
    rounding = 2 * (length + rows) * info.eps * traces[0] * traces[1]
    lost = rows**2 * length * info.tiny * (1 + traces[0] + traces[1])  # by underflow
    return found + rounding + lost <= tau.clamp(0, CAP).square()


def _exact(a: Tensor, delta: Tensor, tau: Tensor, measure: bool) -> Core:
    """Member by member, in groups that go the same way."""
    sigma = torch.full_like(tau, math.nan)
    places = torch.arange(len(tau)) if measure else (~_below(a, delta, tau)).nonzero()[:, 0]
    if not len(places):
        return a, delta, sigma
    whole = len(places) == len(tau)
    pair = balanced(a, delta) if whole else balanced(a[places], delta[places])
    batch = ProductBatch(pair, _scaled(tau[places], pair.exponent), TOLERANCE[a.dtype], torch.finfo(a.dtype).eps)
    found = batch.sort(measure)
    lost = (pair.finite & batch.tau.isnan()).nonzero()[:, 0]
    if len(lost):
        delta = delta.index_fill(0, places[lost], math.nan)
    if found is not None:
        a, delta = _changed(a, delta, places, batch, found)
    sigma[places] = torch.where(pair.finite, times_power(batch.sigma, pair.exponent), math.nan)
    return a, delta, sigma


def _changed(a: Tensor, delta: Tensor, places: Tensor, batch: ProductBatch, found: Sorted) -> tuple[Tensor, Tensor]:
    """Both factors with what is above τ clipped, each member in its own way."""
    several = found.several
    if len(found.alone):
        right, good = batch.without_top(found.alone, found.top)
        several = torch.cat([several, found.alone[~good]])
        delta = delta.index_copy(0, places[found.alone], right.to(delta.dtype))
    if len(found.unknown):
        batch.cores(found.unknown)
    for rows, first, second in batch.cores(several) if len(several) else ():
        top = torch.minimum(batch.sigma[rows], batch.tau[rows])
        first, second = _unscaled(first, second, top, batch.pair.exponent[rows])
        a = a.index_copy(0, places[rows], first.to(a.dtype))
        delta = delta.index_copy(0, places[rows], second.to(delta.dtype))
    return a, delta
