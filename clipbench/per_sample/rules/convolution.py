"""Convolutions of any dimension, with stride, padding, dilation and groups, and transposed ones."""

from __future__ import annotations

import math
from collections.abc import Collection

import torch
from torch import Tensor

from clipbench.per_sample.care import deep, grams_apart, promoted
from clipbench.per_sample.cost import (
    chunk_size,
    gram_cost,
    instance_cost,
    position_gram_cost,
    prefers_folding,
    prefers_taps,
    traffic_cost,
)
from clipbench.per_sample.factors import factor_norms, gram_sum, row_norms
from clipbench.per_sample.layout import SampleWeights
from clipbench.per_sample.rules.base import Use, weighted_rows
from clipbench.per_sample.rules.taps import weight_by_taps
from clipbench.per_sample.rules.windows import Geometry, unfold, window_sums
from clipbench.per_sample.slots import Node, Slot


class ConvolutionUse(Use):
    """out = W ⋆ x: g_k = Σ_p δ_{kp} u_{kp}ᵀ over output positions p, with u the unfolded input.

    For a transposed convolution x and δ change places: its gradient is that of the convolution that maps δ to x.
    """

    def __init__(self, node: Node, slots: dict[str, Slot], n: int) -> None:
        super().__init__(node, slots, node._input_metadata[0].shape[:1], n)
        self.x: Tensor | None = node._saved_input if "weight" in slots else None
        self.weight = node._saved_weight
        dims = self.weight.dim() - 2
        self.stride, self.padding = list(node._saved_stride), list(node._saved_padding)
        if len(self.padding) < dims:  # padding='valid' leaves one number for all axes
            self.padding = self.padding * dims
        self.dilation, self.groups = list(node._saved_dilation), int(node._saved_groups)
        self.transposed, self.output_padding = bool(node._saved_transposed), list(node._saved_output_padding)
        self._formed: Tensor | None = None

    @property
    def geometry(self) -> Geometry:
        """Kernel and steps."""
        return Geometry(tuple(self.weight.shape[2:]), tuple(self.stride), tuple(self.padding), tuple(self.dilation))

    def sides(self) -> tuple[Tensor, Tensor]:
        """(image that is unfolded, tensor at the output positions) of the convolution whose gradient is wanted."""
        assert self.x is not None
        return (self.delta, self.x) if self.transposed else (self.x, self.delta)

    def norms(self, roles: Collection[str]) -> Tensor:
        parts = [self.weight_norms()] if "weight" in roles else []
        if "bias" in roles:
            parts.append(row_norms(self.bias_instances()))
        return parts[0] if len(parts) == 1 else torch.hypot(*parts)

    def forms(self) -> bool:
        """Whether the weight is so small beside the maps that the library's own kernel forms all gradients at once."""
        assert self.x is not None
        device = self.delta.device.type
        fits = prefers_folding(self.rows * self.weight.numel(), self.x.numel() + self.delta.numel())
        return fits and (device == "cpu" or self.groups > 1)

    def formed(self) -> Tensor:
        """The weight's per-sample gradients, (n, *shape): rows become groups of one convolution. Made once."""
        if self._formed is None and self.pointwise:
            self._formed = self.split(self.products().reshape(self.rows, *self.weight.shape)).sum(1)
        elif self._formed is None:
            assert self.x is not None
            x, delta, weight = (promoted(tensor) for tensor in (self.x, self.delta, self.weight))
            folded = self.backward_of_weight(
                delta.reshape(1, -1, *delta.shape[2:]),
                x.reshape(1, -1, *x.shape[2:]),
                weight.repeat(self.rows, *[1] * (weight.dim() - 1)),
                self.groups * self.rows,
            )
            self._formed = self.split(folded.reshape(self.rows, *weight.shape)).sum(1)
        return self._formed

    @property
    def pointwise(self) -> bool:
        """Whether every output position meets one position of the input: a linear layer on them."""
        return self.geometry.taps == 1 and not any(self.padding)

    def products(self) -> Tensor:
        """Gradients of a pointwise weight by row and group, (rows · groups, channels out, channels in): δ uᵀ.

        The library's kernel takes the groups of such a convolution one by one.
        """
        image, out = (promoted(side) for side in self.sides())
        cuts = [slice(0, (size - 1) * step + 1, step) for size, step in zip(out.shape[2:], self.stride, strict=True)]
        u = image[(slice(None), slice(None), *cuts)].reshape(self.rows * self.groups, -1, math.prod(out.shape[2:]))
        delta = out.reshape(self.rows * self.groups, -1, u.shape[2])
        return torch.bmm(delta, u.transpose(1, 2))

    def forget(self) -> None:
        super().forget()
        self._formed = None

    def weight_norms(self) -> Tensor:
        """Norms (n,) of the weight's per-sample gradients, in chunks of samples that stay in cache."""
        if self.forms():
            return row_norms(self.formed())
        image, out = self.sides()
        area, positions = math.prod(image.shape[2:]), math.prod(out.shape[2:])
        fan_in, fan_out = image.shape[1] // self.groups, out.shape[1] // self.groups
        taps = self.geometry.taps
        unfolded = min(gram_cost(positions, fan_out, fan_in * taps), instance_cost(positions, fan_out, fan_in * taps))
        cut = 4.0 * positions * fan_in * taps
        unfolded += traffic_cost(2.0 * cut, cut)
        in_place = (
            self.one_each
            and grams_apart(image)
            and position_gram_cost(area, positions, taps, fan_in, fan_out) < unfolded
        )
        held = self.groups * (4.0 * (area * area + 2 * positions**2) if in_place else cut)
        size = chunk_size(held * self.positions, image.device.type)
        form = self.position_norms if in_place else self.unfolded_norms
        parts = [form(first, min(first + size, self.n)) for first in range(0, self.n, size)]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def position_norms(self, first: int, last: int) -> Tensor:
        """√ Σ_{pq} ⟨u_p, u_q⟩ ⟨δ_p, δ_q⟩ with the first factor from the input's own Gram matrix."""
        image, out = (deep(side[first:last]) for side in self.sides())
        x = image.reshape((last - first) * self.groups, -1, math.prod(image.shape[2:]))
        d = out.reshape((last - first) * self.groups, -1, math.prod(out.shape[2:]))
        grams = window_sums(torch.bmm(x.transpose(1, 2), x), self.geometry, image.shape[2:], out.shape[2:])
        return gram_sum(grams, torch.bmm(d.transpose(1, 2), d), groups=self.groups)

    def unfolded_norms(self, first: int, last: int) -> Tensor:
        """The same from unfolded inputs."""
        left, right = self.unfolded(first, last)
        return factor_norms(left.flatten(0, 1), right.flatten(0, 1), groups=self.groups)

    def unfolded(self, first: int, last: int) -> tuple[Tensor, Tensor]:
        """(b, groups, positions, channels out per group) and (b, groups, positions, taps · channels in per group)."""
        image, out = (promoted(self.split(side)[first:last]) for side in self.sides())
        b, frames, space = out.shape[0], out.shape[1], out.shape[3:]
        right = unfold(image.flatten(0, 1), self.geometry, space, self.groups)
        left = out.reshape(b, frames, self.groups, -1, math.prod(space)).permute(0, 2, 1, 4, 3)
        right = right.unflatten(0, (b, frames)).transpose(1, 2)
        return left.flatten(2, 3), right.flatten(2, 3)

    def bias_instances(self) -> Tensor:
        """Per-sample gradients of the bias, (n, channels out)."""
        return self.split(promoted(self.delta).flatten(2).sum(2)).sum(1)

    def instances(self, role: str, first: int, last: int) -> Tensor:
        if role == "bias":
            return self.bias_instances()[first:last]
        if self.forms():
            return self.formed()[first:last]
        left, right = self.unfolded(first, last)
        kernel = self.geometry.kernel
        grads = torch.matmul(left.transpose(2, 3), right).unflatten(-1, (*kernel, -1)).movedim(-1, 3)
        return grads.reshape(last - first, *self.slots["weight"].part_shape)

    def weighted(self, gamma: SampleWeights) -> dict[str, Tensor]:
        sums: dict[str, Tensor] = {}
        if self._formed is not None:
            sums["weight"] = weighted_rows(gamma.values, self._formed)
            if "bias" in self.slots:
                sums["bias"] = weighted_rows(gamma.values, self.bias_instances())
            return sums
        scaled = gamma.times(self.delta, self.layout)
        if "weight" in self.slots:
            sums["weight"] = self.weighted_weight(scaled)
        if "bias" in self.slots:
            sums["bias"] = scaled.sum((0, *range(2, scaled.dim())))
        return sums

    def weighted_weight(self, scaled: Tensor) -> Tensor:
        """The weight's gradient for the output gradient `scaled`."""
        assert self.x is not None
        weight = self.weight.to(scaled.dtype)
        if self.groups == 1 and not self.transposed and scaled.device.type == "cpu":
            geometry, space, out = self.geometry, self.x.shape[2:], scaled.shape[2:]
            pairs = geometry.valid_pairs(space, out)
            if prefers_taps(pairs, geometry.taps * math.prod(out), weight.shape[1], weight.shape[0]):
                return weight_by_taps(self.x, scaled, geometry)
        return self.backward_of_weight(scaled, self.x, weight, self.groups)

    def backward_of_weight(self, delta: Tensor, x: Tensor, weight: Tensor, groups: int) -> Tensor:
        """The library's own kernel."""
        return torch.ops.aten.convolution_backward(
            delta, x, weight, None, self.stride, self.padding, self.dilation, self.transposed, self.output_padding,
            groups, [False, True, False],
        )[1]  # fmt: skip

    def drop(self, keep: Tensor) -> None:
        super().drop(keep)
        if self.x is not None:
            self.x = self.masked(self.x, keep)
        if self._formed is not None:
            self._formed = torch.where(keep.reshape(-1, *[1] * (self._formed.dim() - 1)), self._formed, 0.0)


def read_convolution(node: Node, slots: dict[int, Slot], n: int) -> Use | None:
    """Operands 1 (weight) and 2 (bias)."""
    named = {role: slots[index] for index, role in ((1, "weight"), (2, "bias")) if index in slots}
    plain = all(slot.whole and not slot.reshaped and not slot.transposed for slot in named.values())
    return ConvolutionUse(node, named, n) if plain and 0 not in slots else None
