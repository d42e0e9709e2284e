"""Matrix products with a parameter: `nn.Linear` with any leading axes, attention's projections, `x @ W`."""

from __future__ import annotations

import torch
from torch import Tensor

from clipbench.per_sample.factors import factor_norms, row_norms, wide
from clipbench.per_sample.rules.base import Use
from clipbench.per_sample.slots import Node, Slot


class LinearUse(Use):
    """out = a W (+ b) with a (rows, d_in), W (d_in, d_out): g_k = Σ_t a_{kt} δ_{kt}ᵀ, and Σ_t δ_{kt} for the bias."""

    def __init__(self, node: Node, slots: dict[str, Slot], a: Tensor | None, n: int) -> None:
        super().__init__(node, slots, node._input_metadata[0].shape[:1], n)
        self.a = a

    def factors(self, role: str) -> tuple[Tensor, Tensor] | None:
        if role == "bias" or self.a is None:
            return None
        a, delta = self.split(self.a), self.split(self.delta)
        return (delta, a) if self.slots["weight"].transposed else (a, delta)

    def squared_norms(self, roles: frozenset[str]) -> Tensor:
        delta = self.split(self.delta)
        if "weight" not in roles or self.a is None:
            return row_norms(wide(delta).sum(1))
        return factor_norms(delta, self.split(self.a), bias="bias" in roles)

    def instances(self, role: str, first: int, last: int) -> Tensor:
        factors = self.factors(role)
        if factors is None:
            return wide(self.split(self.delta)[first:last]).sum(1)
        left, right = factors
        return torch.bmm(wide(left[first:last]).transpose(1, 2), wide(right[first:last]))

    def weighted(self, gamma: Tensor) -> dict[str, Tensor]:
        scaled = self.delta * self.layout.spread(gamma, self.rows).to(self.delta.dtype)[:, None]
        sums: dict[str, Tensor] = {}
        if "weight" in self.slots and self.a is not None:
            transposed = self.slots["weight"].transposed
            sums["weight"] = scaled.t() @ self.a if transposed else self.a.t() @ scaled
        if "bias" in self.slots:
            sums["bias"] = scaled.sum(0)
        return sums

    def drop(self, keep: Tensor) -> None:
        super().drop(keep)
        if self.a is not None:
            self.a = self.masked(self.a, keep)


def read_addmm(node: Node, slots: dict[int, Slot], n: int) -> Use | None:
    """b + a W: operands 0 (bias), 1 (a), 2 (W)."""
    if 1 in slots or node._saved_alpha != 1 or node._saved_beta != 1:
        return None
    if 0 in slots and len(slots[0].shape) != 1:
        return None
    return _read(node, slots.get(0), slots.get(2), "_saved_mat1", n)


def read_mm(node: Node, slots: dict[int, Slot], n: int) -> Use | None:
    """a W: operands 0 (a), 1 (W)."""
    return None if 0 in slots else _read(node, None, slots[1], "_saved_self", n)


def _read(node: Node, bias: Slot | None, weight: Slot | None, saved: str, n: int) -> Use | None:
    slots = {role: slot for role, slot in (("weight", weight), ("bias", bias)) if slot is not None}
    if weight is not None and weight.reshaped:
        return None
    return LinearUse(node, slots, getattr(node, saved) if weight is not None else None, n)
