"""Parameters that are read more than once: the norm of a sum of gradients is not the sum of their norms."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from clipbench.per_sample.care import deep, fast, grams_apart, least
from clipbench.per_sample.cost import chunk_size
from clipbench.per_sample.factors import SHARE, factor_norms, row_norms
from clipbench.per_sample.rules.embedding import lookup_norms
from clipbench.per_sample.traces import Reading


def shared(readings: Sequence[Reading]) -> list[list[Reading]]:
    """Readings of the same part of a parameter, for every part that is read at least twice."""
    parts: dict[object, list[Reading]] = {}
    for use, role in readings:
        parts.setdefault(use.slots[role].key, []).append((use, role))
    return [part for part in parts.values() if len(part) > 1]


def joint_norms(group: Sequence[Reading]) -> Tensor:
    """‖Σ over readings of g_k‖² for every sample, (n,): all cross terms included."""
    factors = [use.factors(role) for use, role in group]
    products = [pair for pair in factors if pair is not None]
    if not aligned(group, products):
        return instance_norms(group)
    if len(products) == len(group):
        return factor_norms(*joined(products))
    tables = [use.lookups(role) for (use, role), pair in zip(group, factors, strict=True) if pair is None]
    lookups = [pair for pair in tables if pair is not None]
    if len(products) + len(lookups) == len(group):
        indices, rows = joined(lookups)
        small = indices.shape[1] <= group[0][0].slots[group[0][1]].part_shape[0]
        if small and (not products or grams_apart(rows)):
            return table_norms(products, indices, rows)
    return instance_norms(group)


def aligned(group: Sequence[Reading], products: Sequence[tuple[Tensor, Tensor]]) -> bool:
    """Whether all factors are of the part's own shape, as a matrix: views of it in others have others."""
    use, role = group[0]
    first, *rest = use.slots[role].part_shape or (1,)
    return all((left.shape[2], right.shape[2]) == (first, math.prod(rest)) for left, right in products)


def joined(pairs: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """The positions of all pairs one after another."""
    return torch.cat([first for first, _ in pairs], dim=1), torch.cat([second for _, second in pairs], dim=1)


def table_norms(products: Sequence[tuple[Tensor, Tensor]], indices: Tensor, rows: Tensor) -> Tensor:
    """A table that is looked up and is the matrix of products too (a tied output layer), without forming one.

    With products Σ_s l_s r_sᵀ and rows y_t at i_t the cross term is Σ_{ts} l_s[i_t] ⟨r_s, y_t⟩.
    """
    norms = lookup_norms(indices, rows)
    if not products:
        return norms
    left, right = joined(products)
    met = deep(left).gather(2, indices.unsqueeze(1).expand(-1, left.shape[1], -1))
    cross = (torch.bmm(deep(right), deep(rows).mH) * met).sum((1, 2))
    apart = norms.square() + factor_norms(left, right).square()
    squares = apart + 2 * torch.real(cross)
    if fast():  # marked where the two cancel, and where squares fell out of the dtype
        return squares.masked_fill_(squares <= SHARE * apart + least(squares.dtype) ** 2, torch.inf).sqrt_()
    return squares.clamp(min=0.0).sqrt_()  # rounding may leave a negative sum


def instance_norms(group: Sequence[Reading]) -> Tensor:
    """From the gradients themselves, in chunks of samples."""
    n = group[0][0].n
    size = chunk_size(sum(use.instance_bytes(role) for use, role in group), group[0][0].delta.device.type)
    parts = []
    for first in range(0, n, size):
        last = min(first + size, n)
        total = sum(use.instances(role, first, last).reshape(last - first, -1) for use, role in group)
        parts.append(row_norms(torch.as_tensor(total, device=group[0][0].delta.device)))
    return torch.cat(parts)
