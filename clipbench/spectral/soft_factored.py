"""Soft spectral clipping of a product that is never formed: G = aᵀδ, r rows each, with r below G's sides.

With K_A = a aᵀ, K_B = δ δᵀ = L Lᵀ and S = Lᵀ K_A L, whose eigenvalues are the σ² of G, the push-through identity gives
(I + G Gᵀ/c²)^{-1/2} G = aᵀ (δ − L g(S) Lᵀ K_A δ) with x g(x) = 1 − 1/√(1 + x/c²): nothing is inverted.
"""

from __future__ import annotations

import torch
from torch import Tensor

JITTER = 4.0  # times eps tr K_B: what makes a Gram matrix of dependent rows positive definite


@torch.no_grad()
def soft_factored(a: Tensor, delta: Tensor, level: Tensor) -> tuple[Tensor, Tensor]:
    """Soft spectral clipping (SPECTRA, arXiv 2603.14315), σ → σ/√(1 + σ²/c²), from the factors of G = aᵀδ.

    Returns (δ', σ_max): aᵀδ' is the clipped G, δ' of delta's shape and dtype, σ_max (B,) float64 before clipping.
    a: (B, r, n); delta: (B, r, m), finite, in float32 or float64. level: c > 0, (B,), ∞ leaves a member as it is.
    """
    left, right = a.double(), delta.double()
    grams = left @ left.mT, right @ right.mT
    factor = _root(grams[1])
    values, vectors = torch.linalg.eigh(factor.mT @ grams[0] @ factor)
    values = values.clamp_min(0)
    square = level.double().square()[:, None]
    root = torch.sqrt(1 + values / square)
    taken = 1 / (square * root * (1 + root))
    inner = factor @ vectors
    change = inner @ (taken[..., None] * (inner.mT @ (grams[0] @ right)))
    return (right - change).to(delta.dtype), values[:, -1].sqrt()


def _root(gram: Tensor) -> Tensor:
    """L with L Lᵀ the Gram matrix, lower triangular; what is not positive definite gets the least that makes it so."""
    factor, info = torch.linalg.cholesky_ex(gram)
    odd = info.nonzero()[:, 0]
    if len(odd):
        part = gram[odd]
        trace = part.diagonal(dim1=1, dim2=2).sum(1)
        size = JITTER * torch.finfo(gram.dtype).eps * trace + torch.finfo(gram.dtype).tiny
        shifted = part + torch.diag_embed(size[:, None].expand(-1, part.shape[1]))
        factor[odd] = torch.linalg.cholesky(shifted)
    return factor
