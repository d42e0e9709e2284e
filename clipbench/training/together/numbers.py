"""Numbers that differ from member to member."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

Number = float | Tensor


def per_member(values: Sequence[float], like: Tensor) -> Number:
    """One number a member, to be multiplied with tensors of like's kind (R, …): a plain one where all are equal."""
    if all(value == values[0] for value in values):
        return float(values[0])
    column = torch.tensor(values, dtype=torch.float64)
    return column.to(like.device, like.dtype).view(-1, *(1,) * (like.dim() - 1))


def over(factor: Tensor, like: Tensor) -> Tensor:
    """`factor` (R,) with the axes it needs to be multiplied with `like` (R, …)."""
    return factor.to(like.dtype).view(-1, *(1,) * (like.dim() - 1))
