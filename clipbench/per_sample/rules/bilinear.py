"""nn.Bilinear: out_o = xᵀ W_o y, so g_k = Σ_t δ_{kt} ⊗ x_{kt} ⊗ y_{kt}."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor

from clipbench.per_sample.care import deep, grams_apart, promoted
from clipbench.per_sample.cost import chunk_size
from clipbench.per_sample.factors import gram_sum, outer_norms, row_norms
from clipbench.per_sample.layout import SampleWeights
from clipbench.per_sample.rules.base import Use
from clipbench.per_sample.slots import Node, Slot


class BilinearUse(Use):
    """δ (rows, o), x (rows, p), y (rows, q); the weight is (o, p, q)."""

    def __init__(self, node: Node, slot: Slot, n: int) -> None:
        super().__init__(node, {"weight": slot}, node._input_metadata[0].shape[:1], n)
        self.x, self.y = node._saved_i1, node._saved_i3

    def norms(self, roles: Collection[str]) -> Tensor:
        """√ Σ_{ts} ⟨δ_t, δ_s⟩ ⟨x_t, x_s⟩ ⟨y_t, y_s⟩, or from the instances where there are many positions."""
        sides = [self.split(side) for side in (self.delta, self.x, self.y)]
        positions, widths = sides[0].shape[1], [side.shape[2] for side in sides]
        if positions == 1:
            delta, x, y = (side[:, 0] for side in sides)
            return outer_norms(delta, outer_norms(x, y).unsqueeze(1))
        if grams_apart(self.delta) and positions * sum(widths) <= widths[0] * widths[1] * widths[2]:
            return gram_sum(*(torch.bmm(side, side.transpose(1, 2)) for side in map(deep, sides)))
        size = chunk_size(4.0 * widths[0] * widths[1] * widths[2], self.delta.device.type)
        parts = [self.instances("weight", i, min(i + size, self.n)) for i in range(0, self.n, size)]
        return torch.cat([row_norms(part) for part in parts])

    def instances(self, role: str, first: int, last: int) -> Tensor:
        delta, x, y = (promoted(self.split(side)[first:last]) for side in (self.delta, self.x, self.y))
        grads = torch.bmm(_outer(delta, x).transpose(1, 2), y)
        return grads.view(last - first, *self.slots[role].part_shape)

    def weighted(self, gamma: SampleWeights) -> dict[str, Tensor]:
        delta = gamma.times(self.delta, self.layout)
        sums = _outer(delta, self.x).t() @ self.y
        return {"weight": sums.view(self.slots["weight"].part_shape)}

    def drop(self, keep: Tensor) -> None:
        super().drop(keep)
        self.x, self.y = self.masked(self.x, keep), self.masked(self.y, keep)


def _outer(first: Tensor, second: Tensor) -> Tensor:
    """(…, p) and (…, q) → (…, p q)."""
    return (first.unsqueeze(-1) * second.unsqueeze(-2)).flatten(-2)


def read_bilinear(node: Node, slots: dict[int, Slot], n: int) -> Use | None:
    """Operand 1, the weight; the axes are those that nn.Bilinear asks torch's trilinear product for."""
    axes = tuple(node._saved_expand1), tuple(node._saved_expand2), tuple(node._saved_expand3)
    plain = axes == ((1, 3), (0,), (1, 2)) and tuple(node._saved_sumdim) == (2, 3)
    return BilinearUse(node, slots[1], n) if plain and set(slots) == {1} and not slots[1].transposed else None
