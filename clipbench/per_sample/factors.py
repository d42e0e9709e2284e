"""Norms of per-sample gradients that are sums of outer products over positions: g_k = Σ_t l_{kt} r_{kt}ᵀ."""

from __future__ import annotations

import torch
from torch import Tensor

from clipbench.per_sample.cost import chunk_size, gram_cost, instance_cost


def wide(tensor: Tensor) -> Tensor:
    """The tensor in the precision norms are computed in: float32 for half precisions, else its own."""
    return tensor.float() if tensor.dtype in (torch.bfloat16, torch.float16) else tensor


def row_norms(rows: Tensor) -> Tensor:
    """Squared norms (n,) of everything that belongs to one index of the first axis."""
    rows = wide(rows)
    return rows.square() if rows.dim() == 1 else torch.linalg.vector_norm(rows.flatten(1), dim=1).square_()


def gram_form(left: Tensor, right: Tensor, bias: bool) -> Tensor:
    """Σ_{ts} ⟨l_t, l_s⟩ (⟨r_t, r_s⟩ + bias), shape (n,)."""
    grams = torch.bmm(right, right.transpose(1, 2))
    if bias:
        grams += 1.0
    return gram_sum(grams, torch.bmm(left, left.transpose(1, 2)))


def gram_sum(first: Tensor, second: Tensor) -> Tensor:
    """Σ_{ts} first_{ts} second_{ts} of two Gram matrices (n, t, t), (n,): not negative but for rounding. Overwrites."""
    return first.mul_(second).sum((1, 2)).clamp_(min=0.0)


def instantiated_form(left: Tensor, right: Tensor, bias: bool) -> Tensor:
    """‖lᵀ r‖² (+ ‖Σ_t l_t‖²), shape (n,)."""
    squares = row_norms(torch.bmm(left.transpose(1, 2), right))
    return squares + row_norms(left.sum(1)) if bias else squares


def factor_norms(left: Tensor, right: Tensor, bias: bool = False) -> Tensor:
    """‖Σ_t l_t r_tᵀ‖² for every sample, shape (n,); plus ‖Σ_t l_t‖² where `bias` is set.

    `left` (n, positions, p), `right` (n, positions, q). Takes the cheaper of the Gram form, in which the gradient
    (p, q) is never formed, and the instantiated form (see `cost`), in chunks of samples that stay in cache.
    In the Gram form a bias costs nothing.
    """
    n, positions, p = left.shape
    q = right.shape[-1]
    if positions == 1:
        squares = row_norms(left) * row_norms(right)
        return squares + row_norms(left) if bias else squares
    gram = gram_cost(positions, p, q) <= instance_cost(positions, p, q)
    form = gram_form if gram else instantiated_form
    held = 4.0 * (positions * (p + q) + (2 * positions * positions if gram else p * q))
    size = chunk_size(held, left.device.type)
    parts = [form(wide(left[i : i + size]), wide(right[i : i + size]), bias) for i in range(0, n, size)]
    return parts[0] if len(parts) == 1 else torch.cat(parts)
