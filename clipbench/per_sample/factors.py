"""Norms of per-sample gradients that are sums of outer products over positions: g_k = Σ_t l_{kt} r_{kt}ᵀ."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from clipbench.per_sample.care import deep, fast, grams_apart, least, marked, promoted
from clipbench.per_sample.cost import DOUBLE, chunk_size, gram_cost, instance_cost

LONG_ROW = 1 << 15
SHARE = 2.0**-6
"""Of what a Gram form adds up, the part that has to be left. Below it half of float32's digits may be lost."""


def row_norms(rows: Tensor) -> Tensor:
    """Norms (n,) of everything that belongs to one index of the first axis.

    Long rows go in levels: torch's float32 norm loses 1e-5 at a million entries, 3e-3 at forty million.
    """
    if not fast():
        return scaled_norms(rows)
    flat = promoted(rows)
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


def scaled_norms(rows: Tensor) -> Tensor:
    """Norms (n,) of rows of any size, in float64; float64's own numbers are scaled by the largest."""
    if rows.dim() == 1:
        return deep(rows).abs()
    flat = (torch.view_as_real(rows.resolve_conj()) if rows.is_complex() else rows).flatten(1)
    if flat.dtype is not torch.float64 or flat.shape[1] == 0:
        return torch.linalg.vector_norm(flat, dim=1, dtype=torch.float64)
    top = flat.abs().amax(1, keepdim=True)
    top = torch.where((top > 0) & (top < torch.inf), top, 1.0)
    return torch.linalg.vector_norm(flat / top, dim=1).mul_(top[:, 0])


def across(parts: Sequence[Tensor]) -> Tensor:
    """Norms (n,) of what has these norms by parts, each (n,)."""
    if len(parts) == 1:
        return parts[0]
    stacked = torch.stack(list(parts))
    return torch.linalg.vector_norm(stacked, dim=0) if fast() else scaled_norms(stacked.t())


def trace(gram: Tensor) -> Tensor | float:
    """Σ_t gram_tt of Gram matrices (n, t, t), (n,); of truth values, which are true there, the number."""
    if gram.dtype is torch.bool:
        return float(gram.shape[1])
    return torch.real(gram.diagonal(dim1=1, dim2=2).sum(1))


def gram_sum(first: Tensor, *others: Tensor, groups: int = 1) -> Tensor:
    """√ Σ_{ts} of the product of Gram matrices (n · groups, t, t), over all of a sample's groups, (n,).

    Overwrites the first.

    Σ_{ts} of absolute values is at most the product of the traces, about t times the sum where positions do not
    cancel. FAST marks what is less than a share of that: the digits are lost where more cancels, and where entries
    fell out of the dtype (`floor` stands for those of up to 2¹⁶ products each).
    """
    if not fast():
        for other in others:
            first = first.mul_(other)
        sums = torch.real(first.sum((1, 2))).view(-1, groups).sum(1)
        return sums.clamp_(min=0.0).sqrt_()  # rounding may leave a negative sum
    positions = first.shape[1]
    share = SHARE / max(positions, 1)
    floor = positions * 2.0**17 * torch.finfo(first.dtype).tiny / share
    bound = (trace(first) + floor) * share
    for other in others:
        bound = bound * (trace(other) + floor)
        first = first.mul_(other)
    sums = torch.real(first.sum((1, 2))).view(-1, groups).sum(1)
    # What a group may have lost counts beside all groups: one that holds nothing but zeros leaves no doubt.
    bound = torch.as_tensor(bound, device=first.device)
    return sums.masked_fill_(sums <= bound.view(-1, groups).sum(1), torch.inf).sqrt_()


def gram_form(left: Tensor, right: Tensor, bias: bool, groups: int = 1) -> Tensor:
    """√ Σ_{ts} ⟨l_t, l_s⟩ (⟨r_t, r_s⟩ + bias), over all of a sample's groups, (n,)."""
    left, right = deep(left), deep(right)
    grams = torch.bmm(right, right.mH)
    if bias:
        grams += 1.0
    return gram_sum(grams, torch.bmm(left, left.mH), groups=groups)


def instantiated_form(left: Tensor, right: Tensor, bias: bool, groups: int = 1) -> Tensor:
    """√ (‖lᵀ r‖² + bias · ‖Σ_t l_t‖²), over all of a sample's groups, (n,)."""
    left, right = promoted(left), promoted(right)
    norms = row_norms(torch.bmm(left.transpose(1, 2), right).unflatten(0, (-1, groups)))
    return torch.hypot(norms, row_norms(left.sum(1).unflatten(0, (-1, groups)))) if bias else norms


def outer_norms(left: Tensor, right: Tensor, bias: bool = False, groups: int = 1) -> Tensor:
    """‖l‖ √(‖r‖² + bias), over all of a sample's groups, (n,), from rows (n · groups, p) and (n · groups, q): the
    case of one position."""
    if not fast():
        norms = scaled_norms(right)
        norms = (torch.hypot(norms, torch.ones_like(norms)) if bias else norms) * scaled_norms(left)
        return norms if groups == 1 else scaled_norms(norms.view(-1, groups))
    first, second = (torch.linalg.vector_norm(promoted(side), dim=1) for side in (left, right))
    if bias:
        second = second.square_().add_(1.0).sqrt_()
    if groups == 1:
        return (second if bias else marked(second)).mul_(marked(first))
    low = least(first.dtype)
    missed = torch.linalg.vector_norm(((first + second + low) * low).view(-1, groups), dim=1)
    norms = torch.linalg.vector_norm((first * second).view(-1, groups), dim=1)
    return norms.masked_fill_(norms <= missed / torch.finfo(norms.dtype).eps, torch.inf)


def factor_norms(left: Tensor, right: Tensor, bias: bool = False, groups: int = 1) -> Tensor:
    """‖Σ_t l_t r_tᵀ‖ for every sample, (n,); with `bias`, of that together with Σ_t l_t.

    `left` (n · groups, positions, p), `right` (n · groups, positions, q): a sample's gradient is that of all its
    groups, which follow one another. Takes the cheaper of the Gram form, in which the gradient (p, q) is never formed
    and a bias costs nothing, and the instantiated form (see `cost`), in chunks of samples that stay in cache.
    """
    n, positions, p = left.shape
    q = right.shape[-1]
    if positions == 1:
        return outer_norms(left[:, 0], right[:, 0], bias, groups)
    price = 1.0 if fast() else DOUBLE
    gram = grams_apart(left) and price * gram_cost(positions, p, q) <= instance_cost(positions, p, q)
    form = gram_form if gram else instantiated_form
    held = 4.0 * (2 * positions * positions if gram else p * q)
    size = groups * chunk_size(held * groups, left.device.type)
    parts = [form(left[i : i + size], right[i : i + size], bias, groups) for i in range(0, n, size)]
    return parts[0] if len(parts) == 1 else torch.cat(parts)
