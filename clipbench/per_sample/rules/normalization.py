"""Normalisation layers' scale and shift: g_k = Σ_t δ_{kt} x̂_{kt} and Σ_t δ_{kt}, with x̂ the normalised input."""

from __future__ import annotations

import torch
from torch import Tensor

from clipbench.per_sample.care import deep
from clipbench.per_sample.rules.base import SmallUse, Use
from clipbench.per_sample.slots import Node, Slot


class LayerNormUse(SmallUse):
    """LayerNorm over the trailing axes: x̂ = (x − mean) · rstd, statistics of each row."""

    def __init__(self, node: Node, slots: dict[str, Slot], n: int) -> None:
        shape = node._input_metadata[0].shape
        super().__init__(node, slots, shape[: len(shape) - len(node._saved_normalized_shape)], n)
        self.x, self.mean, self.rstd = node._saved_input, node._saved_result1, node._saved_result2

    def form(self, role: str) -> Tensor:
        if role == "bias":
            return deep(self.split(self.delta)).sum(1)
        centred = (deep(self.x) - self.mean).mul_(self.delta)
        rstd = self.rstd.to(centred.dtype)
        if len(self.node._saved_normalized_shape) > 1:
            return self.split(centred.mul_(rstd)).sum(1)
        return torch.bmm(self.split(rstd).transpose(1, 2), self.split(centred))


class GroupNormUse(SmallUse):
    """GroupNorm: x̂ with the statistics of each sample's group of channels; δ (n, C, *space)."""

    def __init__(self, node: Node, slots: dict[str, Slot], n: int) -> None:
        super().__init__(node, slots, node._input_metadata[0].shape[:1], n)
        self.x, self.mean, self.rstd = node._saved_input, node._saved_result1, node._saved_result2
        self.groups = node._saved_group

    def form(self, role: str) -> Tensor:
        delta = deep(self.delta).reshape(*self.delta.shape[:2], -1)
        if role == "weight":
            x = deep(self.x).reshape(self.rows, self.groups, -1)
            x = (x - self.mean.unsqueeze(-1)).mul_(self.rstd.unsqueeze(-1))
            delta = x.reshape(delta.shape).mul_(delta)
        return self.split(delta.sum(2)).sum(1)


class FixedNormUse(SmallUse):
    """BatchNorm in evaluation: x̂ with the running statistics; δ (n, C, *space)."""

    def __init__(self, node: Node, slots: dict[str, Slot], n: int) -> None:
        super().__init__(node, slots, node._input_metadata[0].shape[:1], n)
        self.x, self.mean = node._saved_input, node._saved_running_mean
        self.rstd = (node._saved_running_var + node._saved_eps).rsqrt()

    def form(self, role: str) -> Tensor:
        delta = deep(self.delta).reshape(*self.delta.shape[:2], -1)
        if role == "weight":
            x = deep(self.x).reshape(delta.shape) - self.mean[:, None]
            delta = x.mul_(self.rstd[:, None]).mul_(delta)
        return self.split(delta.sum(2)).sum(1)


def read_layer_norm(node: Node, slots: dict[int, Slot], n: int) -> Use | None:
    """Operands 1 (weight) and 2 (bias)."""
    return LayerNormUse(node, _affine(slots), n)


def read_group_norm(node: Node, slots: dict[int, Slot], n: int) -> Use | None:
    """Operands 1 (weight) and 2 (bias)."""
    return GroupNormUse(node, _affine(slots), n)


def read_batch_norm(node: Node, slots: dict[int, Slot], n: int) -> Use | None:
    """Operands 1 (weight) and 2 (bias); None while statistics are those of the batch."""
    return None if node._saved_training else FixedNormUse(node, _affine(slots), n)


def _affine(slots: dict[int, Slot]) -> dict[str, Slot]:
    return {role: slots[index] for index, role in ((1, "weight"), (2, "bias")) if index in slots}
