"""PReLU's slope: g_k = Σ_t δ_{kt} min(x_{kt}, 0), one slope for all channels or one each."""

from __future__ import annotations

from torch import Tensor

from clipbench.per_sample.care import deep
from clipbench.per_sample.rules.base import SmallUse, Use
from clipbench.per_sample.slots import Node, Slot


class PReLUUse(SmallUse):
    """δ and x (n, C, *space), or (n, C); the slope is a vector."""

    def __init__(self, node: Node, slot: Slot, n: int) -> None:
        super().__init__(node, {"weight": slot}, node._input_metadata[0].shape[:1], n)
        self.x = node._saved_self

    def form(self, role: str) -> Tensor:
        product = deep(self.x).clamp(max=0.0).mul_(self.delta)
        if self.slots[role].param.numel() == 1:
            return self.split(product.reshape(self.rows, -1).sum(1)).sum(1)
        return self.split(product.unsqueeze(-1).flatten(2).sum(2)).sum(1)


def read_prelu(node: Node, slots: dict[int, Slot], n: int) -> Use | None:
    """Operand 1 is the slope, viewed in the shape it is broadcast with."""
    return PReLUUse(node, slots[1], n) if set(slots) == {1} else None
