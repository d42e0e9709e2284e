"""A convolution's weight gradient tap by tap: for small maps, where most of what a window sees is padding."""

from __future__ import annotations

import torch
from torch import Tensor

from clipbench.per_sample.rules.windows import Geometry


def weight_by_taps(image: Tensor, delta: Tensor, geometry: Geometry) -> Tensor:
    """Σ_{k,p} δ_{kp} x_{k,p+tap}ᵀ for every tap, with p only over the outputs at which the tap meets the input.

    `image` (n, C, *space) and `delta` (n, O, *out) give (O, C, *kernel). A 3 × 3 kernel on a 2 × 2 map has 16 such
    pairs of 36, and each tap is one matrix product over n · pairs rows, with nothing unfolded.
    """
    inputs = image.movedim((0, 1), (-2, -1)).contiguous()  # (*space, n, C)
    outputs = delta.movedim((0, 1), (-2, -1)).contiguous()  # (*out, n, O)
    channels_in, channels_out = image.shape[1], delta.shape[1]
    weight = image.new_empty((geometry.taps, channels_out, channels_in))
    for tap, offset in enumerate(geometry.offsets()):
        met = geometry.valid(offset, image.shape[2:], delta.shape[2:])
        rows = outputs[tuple(slice(inside.start, inside.stop) for inside, _ in met)].reshape(-1, channels_out)
        cols = inputs[tuple(slice(seen.start, seen.stop, seen.step) for _, seen in met)].reshape(-1, channels_in)
        torch.mm(rows.t(), cols, out=weight[tap])
    return weight.permute(1, 2, 0).reshape(channels_out, channels_in, *geometry.kernel)
