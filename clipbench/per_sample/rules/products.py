"""Products with a parameter that are no linear layer's: from the left, batched (`bmm`, einsum), with a vector."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor

from clipbench.per_sample.care import deep, promoted
from clipbench.per_sample.factors import factor_norms, row_norms
from clipbench.per_sample.layout import SampleWeights
from clipbench.per_sample.rules.base import SmallUse, Use
from clipbench.per_sample.slots import Node, Slot


class BatchedProductUse(Use):
    """out_b = X_b W_b or W_b X_b for each head b, the samples among X's rows or columns: g_kb = Σ_t l_{kbt} r_{kbt}ᵀ.

    One head where the operands are matrices. Rows of the flattened output are (heads, features).
    """

    def __init__(self, node: Node, slot: Slot, other: Tensor, from_left: bool, n: int) -> None:
        shape = node._input_metadata[0].shape
        axis = len(shape) - 1 if from_left else len(shape) - 2
        super().__init__(node, {"weight": slot}, shape[axis : axis + 1], n)
        self.axes = (axis,)
        self.from_left = from_left
        self.other = other.conj()

    def flat(self, tensor: Tensor) -> Tensor:
        rows = tensor.movedim(self.axes, (0,))
        return rows.unsqueeze(1) if rows.dim() == 2 else rows

    def sides(self) -> tuple[Tensor, Tensor]:
        """(n, positions, heads, p) and (n, positions, heads, q), so that the gradient is (heads, p, q)."""
        delta, other = self.split(self.delta), self.split(self.other)
        return (delta, other) if self.from_left else (other, delta)

    def factors(self, role: str) -> tuple[Tensor, Tensor] | None:
        left, right = self.sides()
        return (left[:, :, 0], right[:, :, 0]) if left.shape[2] == 1 else None

    def norms(self, roles: Collection[str]) -> Tensor:
        left, right = (side.transpose(1, 2).flatten(0, 1) for side in self.sides())
        return row_norms(factor_norms(left, right).view(self.n, -1))

    def instances(self, role: str, first: int, last: int) -> Tensor:
        left, right = (promoted(side[first:last]).transpose(1, 2) for side in self.sides())
        grads = torch.matmul(left.transpose(-1, -2), right)
        return grads.reshape(last - first, *self.slots[role].part_shape)

    def weighted(self, gamma: SampleWeights) -> dict[str, Tensor]:
        delta, other = gamma.times(self.flat(self.delta), self.layout), self.flat(self.other)
        left, right = (delta, other) if self.from_left else (other, delta)
        return {"weight": torch.matmul(left.permute(1, 2, 0), right.transpose(0, 1))}

    def drop(self, keep: Tensor) -> None:
        rows = self.layout.spread(keep, self.rows)[:, None, None]
        shapes = self.delta.shape, self.other.shape
        masked = (
            torch.where(rows, self.flat(tensor), 0.0).movedim((0,), self.axes) for tensor in (self.delta, self.other)
        )
        self.delta, self.other = (tensor.reshape(shape) for tensor, shape in zip(masked, shapes, strict=True))


class VectorProductUse(SmallUse):
    """out = X p with a vector p: g_k = Σ_t δ_{kt} x_{kt}."""

    def __init__(self, node: Node, slot: Slot, x: Tensor, n: int) -> None:
        super().__init__(node, {"weight": slot}, node._input_metadata[0].shape, n)
        self.x = x.conj()

    def form(self, role: str) -> Tensor:
        return self.split(deep(self.delta).unsqueeze(1) * deep(self.x)).sum(1)


def read_matrix_product(node: Node, slots: dict[int, Slot], n: int) -> Use | None:
    """Products of two matrices (heads of them): the operand that is the parameter, the other saved by its node."""
    if len(slots) != 1:
        return None
    index, slot = next(iter(slots.items()))
    if slot.transposed:
        return None
    other = node._saved_mat2 if index == 0 else node._saved_self
    return BatchedProductUse(node, slot, other, index == 0, n) if other.layout is torch.strided else None


def read_vector_product(node: Node, slots: dict[int, Slot], n: int) -> Use | None:
    """Operand 1, the vector."""
    if set(slots) != {1}:
        return None
    x = node._saved_self  # once: a checkpointed tensor is not handed out again
    return VectorProductUse(node, slots[1], x, n) if x.layout is torch.strided else None
