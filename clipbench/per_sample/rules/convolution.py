"""Convolutions of any dimension, with stride, padding, dilation and groups, and transposed ones."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from clipbench.per_sample.cost import chunk_size
from clipbench.per_sample.factors import factor_norms, row_norms, wide
from clipbench.per_sample.rules.base import Use
from clipbench.per_sample.slots import Node, Slot
from clipbench.per_sample.unfold import patches


class ConvolutionUse(Use):
    """out = W ⋆ x: g_k = Σ_p δ_{kp} u_{kp}ᵀ over output positions p, with u the unfolded input (patches).

    For a transposed convolution x and δ change places: its gradient is that of the convolution that maps δ to x.
    """

    def __init__(self, node: Node, slots: dict[str, Slot], n: int) -> None:
        super().__init__(node, slots, node._input_metadata[0].shape[:1], n)
        self.x = node._saved_input if "weight" in slots else None
        self.stride, self.padding = list(node._saved_stride), list(node._saved_padding)
        self.dilation, self.groups = list(node._saved_dilation), int(node._saved_groups)
        self.transposed, self.output_padding = bool(node._saved_transposed), list(node._saved_output_padding)

    def sides(self) -> tuple[Tensor, Tensor]:
        """(image that is unfolded, tensor at the output positions) of the convolution whose gradient is wanted."""
        assert self.x is not None
        return (self.delta, self.x) if self.transposed else (self.x, self.delta)

    def squared_norms(self, roles: frozenset[str]) -> Tensor:
        total = self.delta.new_zeros(self.n, dtype=wide(self.delta).dtype)
        if "weight" in roles:
            total = total + self.weight_norms()
        if "bias" in roles:
            total = total + row_norms(self.split(wide(self.delta).flatten(2).sum(2)).sum(1))
        return total

    def weight_norms(self) -> Tensor:
        """Squared norms of the weight's per-sample gradients, in chunks of samples whose patches stay in cache."""
        image, _ = self.sides()
        kernel = self.slots["weight"].shape[2:]
        positions = self.sides()[1][0, 0].numel() * (self.rows // self.n)
        size = chunk_size(4.0 * positions * image.shape[1] * math.prod(kernel), image.device.type)
        parts = []
        for i in range(0, self.n, size):
            left, right = self.unfolded(i, min(i + size, self.n))
            parts.append(factor_norms(left.flatten(0, 1), right.flatten(0, 1)).unflatten(0, (-1, self.groups)).sum(1))
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def unfolded(self, first: int, last: int) -> tuple[Tensor, Tensor]:
        """(b, groups, positions, out channels per group) and (b, groups, positions, fan-in) for some samples."""
        image, out = (self.split(side)[first:last] for side in self.sides())
        b, frames = image.shape[:2]
        kernel = self.slots["weight"].shape[2:]
        cut = patches(wide(image).flatten(0, 1), kernel, self.stride, self.padding, self.dilation)
        spatial = out.shape[3:]
        cut = cut[(..., *(slice(0, length) for length in spatial))]
        positions = math.prod(spatial)
        right = cut.reshape(b, frames, self.groups, -1, positions).permute(0, 2, 1, 4, 3)
        left = wide(out).reshape(b, frames, self.groups, -1, positions).permute(0, 2, 1, 4, 3)
        return left.flatten(2, 3), right.flatten(2, 3)

    def instances(self, role: str, first: int, last: int) -> Tensor:
        if role == "bias":
            return self.split(wide(self.delta).flatten(2).sum(2))[first:last].sum(1)
        left, right = self.unfolded(first, last)
        shape = (last - first, *self.slots["weight"].part_shape)
        return torch.matmul(left.transpose(2, 3), right).reshape(shape)

    def weighted(self, gamma: Tensor) -> dict[str, Tensor]:
        scale = self.layout.spread(gamma, self.rows).to(self.delta.dtype)
        scaled = self.delta * scale.reshape(-1, *[1] * (self.delta.dim() - 1))
        sums: dict[str, Tensor] = {}
        if "weight" in self.slots and self.x is not None:
            sums["weight"] = torch.ops.aten.convolution_backward(
                scaled, self.x, self.slots["weight"].param.detach().to(self.delta.dtype), None, self.stride,
                self.padding, self.dilation, self.transposed, self.output_padding, self.groups, [False, True, False],
            )[1]  # fmt: skip
        if "bias" in self.slots:
            sums["bias"] = scaled.flatten(2).sum((0, 2))
        return sums

    def drop(self, keep: Tensor) -> None:
        super().drop(keep)
        if self.x is not None:
            self.x = self.masked(self.x, keep)


def read_convolution(node: Node, slots: dict[int, Slot], n: int) -> Use | None:
    """Operands 1 (weight) and 2 (bias)."""
    named = {role: slots[index] for index, role in ((1, "weight"), (2, "bias")) if index in slots}
    plain = all(slot.whole and not slot.reshaped and not slot.transposed for slot in named.values())
    return ConvolutionUse(node, named, n) if plain and 0 not in slots else None
