"""A layer that got no row at all: an expert that no token of the batch was sent to."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from clipbench.per_sample.layout import SampleWeights
from clipbench.per_sample.rules.base import Use
from clipbench.per_sample.slots import Node, Slot


class EmptyUse(Use):
    """The node's output has no entry, so every gradient is zero, as autograd's is."""

    shows_samples = False

    def __init__(self, node: Node, slots: dict[str, Slot], n: int) -> None:
        super().__init__(node, slots, (0,), n)

    def marks(self, deltas: Sequence[Tensor | None]) -> Tensor:
        return torch.zeros(0, 0, device="cpu")

    def gradient_rows(self) -> Tensor:
        return torch.zeros(0, 0, device="cpu")

    def norms(self, roles: Collection[str]) -> Tensor:
        return self.zeros(next(iter(self.slots.values())), self.n).abs()

    def instances(self, role: str, first: int, last: int) -> Tensor:
        return self.zeros(self.slots[role], last - first, *self.slots[role].part_shape)

    def weighted(self, gamma: SampleWeights) -> dict[str, Tensor]:
        return {role: self.zeros(slot, *slot.part_shape) for role, slot in self.slots.items()}

    def drop(self, keep: Tensor) -> None:
        pass

    @staticmethod
    def zeros(slot: Slot, *shape: int) -> Tensor:
        """Of a parameter's dtype and on its device."""
        return torch.zeros(shape, dtype=slot.param.dtype, device=slot.param.device)


def read_empty(node: Node, slots: dict[int, Slot], n: int) -> Use | None:
    """All operands, where the node has one output, without entries; else None."""
    shapes = [metadata.shape for metadata in node._input_metadata]
    if len(shapes) != 1 or 0 not in shapes[0]:
        return None
    return EmptyUse(node, {f"operand {index}": slot for index, slot in slots.items()}, n)
