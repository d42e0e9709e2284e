"""Patches of an image, sequence or volume: the convolution's input as a matrix of positions."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor


def patches(
    x: Tensor, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int]
) -> Tensor:
    """(n, C, *space) → a view (n, C, *kernel, *out) of the (padded) input: nothing but the padding is copied."""
    if any(padding):
        x = F.pad(x, [amount for side in reversed(padding) for amount in (side, side)])
    dims = len(kernel)
    for axis, (size, step, spread) in enumerate(zip(kernel, stride, dilation, strict=True)):
        x = x.unfold(2 + axis, (size - 1) * spread + 1, step)
    x = x[(..., *(slice(None, None, spread) for spread in dilation))]
    order = [0, 1, *range(2 + dims, 2 + 2 * dims), *range(2, 2 + dims)]
    return x.permute(order)
