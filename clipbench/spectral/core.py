"""Clipping a product leftᵀ right through its r × r core: orthonormal rows on both sides, singular values in between."""

from __future__ import annotations

import torch
from torch import Tensor

from clipbench.spectral.newton_schulz import newton_schulz

Core = tuple[Tensor, Tensor, Tensor]  # rows (B, r, n), rows (B, r, m) whose product is C_τ(G), and σ_max (B,)


TINY = 1e-30  # under the root on the diagonal of a row of zeros, as of a sample without a gradient: far below rounding


def cholesky(gram: Tensor) -> tuple[Tensor, Tensor]:
    """The lower factor of each Gram matrix, of rows of at most 1, and where there is one, (B,)."""
    diagonal = gram.diagonal(dim1=1, dim2=2)
    factor, info = torch.linalg.cholesky_ex(gram + torch.diag_embed((diagonal == 0) * TINY))
    return factor, info == 0


def core_by_gram(left: Tensor, right: Tensor, factors: tuple[Tensor, Tensor], tau: Tensor) -> Core:
    """From the Cholesky factors L of both Gram matrices: core L_AᵀL_B, an eigendecomposition of its Gram matrix."""
    core = factors[0].mT @ factors[1]
    values, vectors = torch.linalg.eigh(core.mT @ core)
    sigma = values.clamp_min(0).sqrt()
    taken = (1 - tau[:, None] / sigma.clamp_min(torch.finfo(sigma.dtype).tiny)).clamp_min(0)
    clipped = torch.baddbmm(core, (core @ vectors) * taken[:, None, :], vectors.mT, alpha=-1)
    identity = torch.eye(core.shape[1], dtype=core.dtype)
    turned = torch.linalg.solve_triangular(factors[0], identity, upper=False)
    changed = torch.linalg.solve_triangular(factors[1], clipped, upper=False, left=False)
    return turned.contiguous() @ left, changed.contiguous() @ right, sigma[:, -1]


def core_by_svd(left: Tensor, right: Tensor, tau: Tensor) -> Core:
    """By QR and SVD, which square nothing."""
    (first, upper), (second, other) = torch.linalg.qr(left.mT), torch.linalg.qr(right.mT)
    u, values, vt = torch.linalg.svd(upper @ other.mT, full_matrices=False)
    changed = values.minimum(tau[:, None])[..., None] * (vt @ second.mT)
    return _padded((first @ u).mT, left), _padded(changed, left), values[:, 0]


def core_by_products(left: Tensor, right: Tensor, tau: Tensor) -> Core:
    """By QR and matrix products, which do not wait for a device."""
    (first, upper), (second, other) = torch.linalg.qr(left.mT), torch.linalg.qr(right.mT)
    core, report = newton_schulz(upper @ other.mT, tau)
    return _padded(first.mT, left), _padded(core @ second.mT, left), report.sigma_max.double()


def _padded(rows: Tensor, like: Tensor) -> Tensor:
    """Rows of zeros added until there are as many as in `like`: QR gives no more than a side has entries."""
    return torch.nn.functional.pad(rows, (0, 0, 0, like.shape[1] - rows.shape[1]))
