"""Bare parameters that meet the samples by broadcasting: `x + p`, `x - p`, `x * p`, `p.expand(…)`, `p.repeat(…)`."""

from __future__ import annotations

from torch import Tensor

from clipbench.per_sample.factors import wide
from clipbench.per_sample.rules.base import SmallUse, Use
from clipbench.per_sample.slots import Node, Slot


class BroadcastUse(SmallUse):
    """out = x ∘ p with p broadcast over the samples: g_k = scale · Σ over broadcast axes of δ_k (· other_k)."""

    def __init__(
        self, node: Node, slot: Slot, n: int, lead: int, scale: float = 1.0, other: Tensor | None = None
    ) -> None:
        super().__init__(node, {"weight": slot}, node._input_metadata[0].shape[:lead], n)
        self.scale = scale
        self.other = other

    def form(self, role: str) -> Tensor:
        delta = wide(self.delta)
        if self.other is not None:
            delta = delta * self.other
        summed = self.split(delta).sum(1)
        shape = self.slots[role].shape
        features = shape[max(len(shape) - (summed.dim() - 1), 0) :]
        features = (1,) * (summed.dim() - 1 - len(features)) + tuple(features)
        return summed.sum_to_size(self.n, *features) * self.scale


def broadcast_axes(out: tuple[int, ...], operand: tuple[int, ...]) -> int:
    """Number of leading axes of `out` over which `operand` is broadcast."""
    padded = (1,) * (len(out) - len(operand)) + tuple(operand)
    count = 0
    while count < len(out) and padded[count] == 1:
        count += 1
    return count


def read_add(node: Node, slots: dict[int, Slot], n: int) -> Use | None:
    """x + alpha · p; the scale applies to operand 1."""
    return _read(node, slots, n, node._saved_alpha)


def read_sub(node: Node, slots: dict[int, Slot], n: int) -> Use | None:
    """x − alpha · p."""
    return _read(node, slots, n, -node._saved_alpha)


def read_mul(node: Node, slots: dict[int, Slot], n: int) -> Use | None:
    """x · p: the other operand is needed."""
    if len(slots) != 1:
        return None
    index = next(iter(slots))
    return _read(node, slots, n, 1.0, node._saved_self if index == 1 else node._saved_other)


def read_expand(node: Node, slots: dict[int, Slot], n: int) -> Use | None:
    """p.expand(n, …)."""
    return _read(node, slots, n, 1.0)


def _read(node: Node, slots: dict[int, Slot], n: int, scale: float, other: Tensor | None = None) -> Use | None:
    if len(slots) != 1:
        return None
    index, slot = next(iter(slots.items()))
    lead = broadcast_axes(tuple(node._input_metadata[0].shape), slot.shape)
    if lead == 0 or slot.transposed:
        return None
    return BroadcastUse(node, slot, n, lead, scale if index == 1 else 1.0, other)


class RepeatUse(SmallUse):
    """p.repeat(n) for a vector p, as InstanceNorm does: δ (n · C,) is the per-sample gradient itself."""

    def __init__(self, node: Node, slot: Slot, n: int) -> None:
        super().__init__(node, {"weight": slot}, (node._saved_repeats[0],), n)

    def flat(self, tensor: Tensor) -> Tensor:
        return tensor.reshape(self.rows, -1)

    def form(self, role: str) -> Tensor:
        return self.split(wide(self.delta)).sum(1)


def read_repeat(node: Node, slots: dict[int, Slot], n: int) -> Use | None:
    """Operand 0, repeated over axes of length one (which is broadcasting), or a vector repeated as a whole."""
    slot, repeats = slots[0], tuple(node._saved_repeats)
    shape = (1,) * (len(repeats) - len(slot.shape)) + slot.shape
    if all(count == 1 or length == 1 for count, length in zip(repeats, shape, strict=True)):
        return _read(node, slots, n, 1.0)
    vector = len(slot.shape) == 1 == len(repeats)
    return RepeatUse(node, slot, n) if vector and not slot.transposed else None
