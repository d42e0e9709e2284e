"""Norms of per-sample gradients that are sums of outer products over positions: g_k = Σ_t l_{kt} r_{kt}ᵀ."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from clipbench.per_sample.cost import chunk_size, gram_cost, instance_cost

LONG_ROW = 1 << 15


def wide(tensor: Tensor) -> Tensor:
    """The tensor in the precision norms are computed in: float32 for half precisions, else its own."""
    return tensor.float() if tensor.dtype in (torch.bfloat16, torch.float16) else tensor


def row_norms(rows: Tensor) -> Tensor:
    """Norms (n,) of everything that belongs to one index of the first axis.

    Long rows go in levels: torch's float32 norm loses 1e-5 at a million entries, 3e-3 at forty million.
    """
    flat = wide(rows)
    if flat.dim() == 1:
        return flat.abs()
    flat = flat.flatten(1)
    length = flat.shape[1]
    if length > LONG_ROW:
        block = math.gcd(length, 4096)
        if block < 64:
            return flat.square().sum(1).sqrt_()
        return row_norms(torch.linalg.vector_norm(flat.unflatten(1, (-1, block)), dim=2))
    return torch.linalg.vector_norm(flat, dim=1)


def gram_sum(first: Tensor, second: Tensor) -> Tensor:
    """√ Σ_{ts} first_{ts} second_{ts} of two Gram matrices (n, t, t), (n,). Overwrites the first."""
    sums = torch.real(first.mul_(second).sum((1, 2)))
    return sums.clamp(min=0.0).sqrt_()  # rounding may leave a negative sum


def gram_form(left: Tensor, right: Tensor, bias: bool) -> Tensor:
    """√ Σ_{ts} ⟨l_t, l_s⟩ (⟨r_t, r_s⟩ + bias), shape (n,)."""
    grams = torch.bmm(right, right.mH)
    if bias:
        grams += 1.0
    return gram_sum(grams, torch.bmm(left, left.mH))


def instantiated_form(left: Tensor, right: Tensor, bias: bool) -> Tensor:
    """√ (‖lᵀ r‖² + bias · ‖Σ_t l_t‖²), shape (n,)."""
    norms = row_norms(torch.bmm(left.transpose(1, 2), right))
    return torch.hypot(norms, row_norms(left.sum(1))) if bias else norms


def outer_norms(left: Tensor, right: Tensor, bias: bool = False) -> Tensor:
    """‖l‖ √(‖r‖² + bias) for every sample, (n,), from rows (n, p) and (n, q): the case of one position."""
    norms = torch.linalg.vector_norm(wide(right), dim=1)
    if bias:
        norms = norms.square_().add_(1.0).sqrt_()
    return norms.mul_(torch.linalg.vector_norm(wide(left), dim=1))


def factor_norms(left: Tensor, right: Tensor, bias: bool = False) -> Tensor:
    """‖Σ_t l_t r_tᵀ‖ for every sample, (n,); with `bias`, of that together with Σ_t l_t.

    `left` (n, positions, p), `right` (n, positions, q). Takes the cheaper of the Gram form, in which the gradient
    (p, q) is never formed and a bias costs nothing, and the instantiated form (see `cost`), in chunks of samples
    that stay in cache.
    """
    n, positions, p = left.shape
    q = right.shape[-1]
    if positions == 1:
        return outer_norms(left[:, 0], right[:, 0], bias)
    gram = gram_cost(positions, p, q) <= instance_cost(positions, p, q)
    form = gram_form if gram else instantiated_form
    held = 4.0 * (2 * positions * positions if gram else p * q)
    size = chunk_size(held, left.device.type)
    parts = [form(wide(left[i : i + size]), wide(right[i : i + size]), bias) for i in range(0, n, size)]
    return parts[0] if len(parts) == 1 else torch.cat(parts)
