"""Parameters that are read more than once: the norm of a sum of gradients is not the sum of their norms."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from clipbench.per_sample.cost import chunk_size
from clipbench.per_sample.factors import factor_norms, row_norms
from clipbench.per_sample.graph import Reading


def shared(readings: Sequence[Reading]) -> list[list[Reading]]:
    """Readings of the same part of a parameter, for every part that is read at least twice."""
    parts: dict[object, list[Reading]] = {}
    for use, role in readings:
        parts.setdefault(use.slots[role].key, []).append((use, role))
    return [part for part in parts.values() if len(part) > 1]


def joint_norms(group: Sequence[Reading]) -> Tensor:
    """‖Σ over readings of g_k‖² for every sample, (n,): all cross terms included."""
    factors = [use.factors(role) for use, role in group]
    if all(pair is not None for pair in factors):
        left = torch.cat([pair[0] for pair in factors if pair is not None], dim=1)
        right = torch.cat([pair[1] for pair in factors if pair is not None], dim=1)
        return factor_norms(left, right)
    n = group[0][0].n
    size = chunk_size(sum(use.instance_bytes(role) for use, role in group), group[0][0].delta.device.type)
    parts = []
    for first in range(0, n, size):
        last = min(first + size, n)
        total = sum(use.instances(role, first, last).reshape(last - first, -1) for use, role in group)
        parts.append(row_norms(torch.as_tensor(total)))
    return torch.cat(parts)
