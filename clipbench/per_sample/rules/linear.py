"""Matrix products with a parameter: `nn.Linear` with any leading axes, attention's projections, `x @ W`."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor

from clipbench.per_sample.care import promoted
from clipbench.per_sample.factors import factor_norms, outer_norms, row_norms
from clipbench.per_sample.layout import SampleWeights, Segments, take
from clipbench.per_sample.rules.base import Use
from clipbench.per_sample.rules.products import read_matrix_product
from clipbench.per_sample.slots import Node, Slot


class LinearUse(Use):
    """out = a W (+ b) with a (rows, d_in), W (d_in, d_out): g_k = Σ_t a_{kt} δ_{kt}ᵀ, and Σ_t δ_{kt} for the bias."""

    def __init__(self, node: Node, slots: dict[str, Slot], a: Tensor | None, n: int) -> None:
        super().__init__(node, slots, (a if a is not None else node._input_metadata[0]).shape[:1], n)
        self.a = a

    def factors(self, role: str) -> tuple[Tensor, Tensor] | None:
        if role == "bias" or self.a is None:
            return None
        a, delta = self.split(self.a), self.split(self.delta)
        return (delta, a) if self.slots["weight"].transposed else (a, delta)

    def norms(self, roles: Collection[str]) -> Tensor:
        bias = "bias" in roles
        if "weight" not in roles or self.a is None:
            return row_norms(promoted(self.split(self.delta)).sum(1))
        if self.one_each:
            return outer_norms(self.delta, self.a, bias)
        if isinstance(self.layout, Segments) and self.layout.lopsided:
            return self.group_norms(self.layout, self.a, bias)
        return factor_norms(self.split(self.delta), self.split(self.a), bias)

    def group_norms(self, layout: Segments, a: Tensor, bias: bool) -> Tensor:
        """The same where some samples have many more rows than others, by groups of similar size."""
        norms = promoted(self.delta.real).new_zeros(self.n)
        for samples, places, missing in layout.groups(self.delta.device):
            left, right = take(self.delta, places, missing), take(a, places, missing)
            norms[samples] = factor_norms(left, right, bias)
        return norms

    def instances(self, role: str, first: int, last: int) -> Tensor:
        factors = self.factors(role)
        if factors is None:
            return promoted(self.split(self.delta)[first:last]).sum(1)
        left, right = factors
        return torch.bmm(promoted(left[first:last]).transpose(1, 2), promoted(right[first:last]))

    def weighted(self, gamma: SampleWeights) -> dict[str, Tensor]:
        delta, a = self.delta, self.a
        column = gamma.column(self.layout, self.rows, delta.dtype)
        sums: dict[str, Tensor] = {}
        if "bias" in self.slots:
            sums["bias"] = (delta.t() @ column)[:, 0] if promoted(delta) is delta else (promoted(delta) * column).sum(0)
        if "weight" in self.slots and a is not None:
            if (
                delta.shape[1] <= a.shape[1] or self.doubted
            ):  # γ goes to the side with fewer entries, or γ a falls to zero
                delta = gamma.times(delta, self.layout)
            else:
                a = gamma.times(a, self.layout)
            sums["weight"] = torch.mm(delta.t(), a) if self.slots["weight"].transposed else torch.mm(a.t(), delta)
        return sums

    def drop(self, keep: Tensor) -> None:
        super().drop(keep)
        if self.a is not None:
            self.a = self.masked(self.a, keep)


def read_addmm(node: Node, slots: dict[int, Slot], n: int) -> Use | None:
    """b + a W: operands 0 (bias), 1 (a), 2 (W); a bias of another shape than W's columns is left out."""
    if 1 in slots or node._saved_alpha != 1 or node._saved_beta != 1:
        return None
    bias, weight = slots.get(0), slots.get(2)
    if bias is not None and bias.shape != (node._input_metadata[0].shape[1],):
        bias = None
    return _read(node, bias, weight, "_saved_mat1", n)


def read_mm(node: Node, slots: dict[int, Slot], n: int) -> Use | None:
    """a W: operand 1 (W), or 0 (a) as a parameter from the left."""
    return read_matrix_product(node, slots, n) if 0 in slots else _read(node, None, slots[1], "_saved_self", n)


def _read(node: Node, bias: Slot | None, weight: Slot | None, saved: str, n: int) -> Use | None:
    if weight is None:
        return LinearUse(node, {"bias": bias}, None, n) if bias is not None else None
    if weight.reshaped:
        return None
    slots = {"weight": weight} if bias is None else {"weight": weight, "bias": bias}
    a = getattr(node, saved)
    return LinearUse(node, slots, a.conj(), n) if a.layout is torch.strided else None
