"""Singular values of a product made smaller by any rule, without forming it: G = aᵀδ, r rows each, r below G's sides.

With K_A = a aᵀ, K_B = δ δᵀ = L Lᵀ and S = Lᵀ K_A L, whose eigenvalues are the σ² of G, the push-through identity gives
f(G Gᵀ) G = aᵀ (δ − L h(S) Lᵀ K_A δ) where f(x) = 1 − x h(x): nothing is inverted, and a stays as it is. One
eigendecomposition a member, whatever its spectrum: where few values change, `clip_factored` is cheaper.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

JITTER = 4.0  # times eps tr K_B: what makes a Gram matrix of dependent rows positive definite


def soft_factored(a: Tensor, delta: Tensor, level: Tensor) -> tuple[Tensor, Tensor]:
    """Soft spectral clipping (SPECTRA, arXiv 2603.14315), σ → σ/√(1 + σ²/c²), of G = aᵀδ from its factors.

    Returns (δ', σ_max): aᵀδ' is the clipped G, δ' of delta's shape and dtype, σ_max (B,) float64 before clipping.
    a: (B, r, n); delta: (B, r, m), finite, in float32 or float64. level: c > 0, (B,); ∞ leaves a member as it is.

    >>> a, delta = torch.randn(4, 3, 10), torch.randn(4, 3, 20)
    >>> changed, sigma_max = soft_factored(a, delta, torch.full((4,), 2.0))
    >>> bool((torch.linalg.matrix_norm(a.mT @ changed, 2) < 2).all())
    True
    """
    square = level.double().square()[:, None]

    def taken(values: Tensor) -> Tensor:
        root = torch.sqrt(1 + values / square)
        return 1 / (square * root * (1 + root))

    return shrink_factored(a, delta, taken)


def hard_factored(a: Tensor, delta: Tensor, tau: Tensor) -> tuple[Tensor, Tensor]:
    """Spectral clipping (arXiv 2605.11838), σ → min(σ, τ), of G = aᵀδ, for members with several values above τ.

    Arguments and result as for `soft_factored`.
    """
    level = tau.double()[:, None]

    def taken(values: Tensor) -> Tensor:
        above = values > level.square()
        safe = torch.where(above, values, 1.0)
        return torch.where(above, (1 - level / safe.sqrt()) / safe, 0.0)

    return shrink_factored(a, delta, taken)


@torch.no_grad()
def shrink_factored(a: Tensor, delta: Tensor, taken: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """δ' and σ_max for any rule s(σ): `taken` maps σ² (B, r), ascending, to h = (1 − s(σ)/σ)/σ².

    The relative error is some float64 eps times the square of σ_max over the level, besides what rounding δ' costs.
    """
    left, right = a.double(), delta.double()
    grams = left @ left.mT, right @ right.mT
    root = _root(grams[1])
    values, vectors = torch.linalg.eigh(root.mT @ grams[0] @ root)
    values = values.clamp_min(0)
    inner = root @ vectors
    change = (inner * taken(values)[:, None, :]) @ ((inner.mT @ grams[0]) @ right)
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
