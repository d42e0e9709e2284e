"""nn.EmbeddingBag: sums or means of the rows that a bag looked up, in bags of any length."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor

from clipbench.per_sample.care import fast, promoted
from clipbench.per_sample.factors import row_norms
from clipbench.per_sample.layout import SampleWeights
from clipbench.per_sample.rules.base import Use
from clipbench.per_sample.slots import Node, Slot, signed

SUM, MEAN = 0, 1
"""torch's numbers of the modes; a maximum is not linear in the table's rows as a whole."""


class BagUse(Use):
    """out_b = Σ_{j in bag b} w_j W[i_j]: g_k[v] = Σ over j of sample k's bags with i_j = v of w_j δ_{b(j)}."""

    def __init__(self, node: Node, slot: Slot, n: int) -> None:
        super().__init__(node, {"weight": slot}, node._input_metadata[0].shape[:1], n)
        self.indices = node._saved_indices
        offsets = node._saved_offsets[: self.rows].contiguous()  # there may be one more, for the end of the last bag
        places = torch.arange(len(self.indices), device=offsets.device)
        self.bag = torch.searchsorted(offsets, places, right=True) - 1
        padding = signed(node._saved_padding_idx, 0)
        self.kept = self.indices != padding if padding >= 0 else torch.ones_like(self.indices, dtype=torch.bool)
        self.mean, self.weights = node._saved_mode == MEAN, node._saved_per_sample_weights

    def looked_up(self) -> Tensor:
        """The gradient of every looked-up row, (indices, width)."""
        delta = promoted(self.delta)
        scale = self.kept.to(delta.dtype)
        if self.mean:
            sizes = torch.zeros_like(delta[:, 0]).index_add_(0, self.bag, scale)
            scale = scale / sizes.clamp(min=1.0)[self.bag]
        if self.weights is not None:
            scale = scale * self.weights.reshape(-1)
        return delta[self.bag] * scale.unsqueeze(1)

    def owners(self) -> Tensor:
        """The sample of every index, 0 … n − 1, and n for nobody's."""
        numbers = torch.arange(1, self.n + 1, device=self.delta.device)
        owner = self.layout.spread(numbers, self.rows)[self.bag]
        return torch.where(owner == 0, self.n, owner - 1)

    def norms(self, roles: Collection[str]) -> Tensor:
        """Rows with one sample and one index are summed first: equal keys lie side by side once sorted."""
        key = self.owners() * self.slots["weight"].part_shape[0] + self.indices
        key, order = key.sort()
        place = torch.cat([key.new_zeros(1), (key[1:] != key[:-1]).cumsum(0)]) if len(key) else key
        rows = self.looked_up()[order]
        sums = torch.zeros_like(rows).index_add_(0, place, rows)
        owner = torch.zeros_like(place).index_copy_(0, place, self.owners()[order])
        if fast():
            squares = sums.square().sum(1)
            return squares.new_zeros(self.n + 1).index_add_(0, owner, squares)[: self.n].sqrt_()
        sizes = row_norms(sums)
        top = sizes.new_zeros(self.n + 1).scatter_reduce_(0, owner, sizes, "amax")
        squares = (sizes / top[owner].clamp(min=torch.finfo(top.dtype).tiny)).square()
        return (torch.zeros_like(top).index_add_(0, owner, squares).sqrt_() * top)[: self.n]

    def instances(self, role: str, first: int, last: int) -> Tensor:
        rows, owner = self.looked_up(), self.owners()
        count, width = self.slots[role].part_shape
        inside = (owner >= first) & (owner < last)
        place = torch.where(inside, (owner - first) * count + self.indices, (last - first) * count)
        table = rows.new_zeros((last - first) * count + 1, width).index_add_(0, place, rows)
        return table[:-1].view(last - first, count, width)

    def weighted(self, gamma: SampleWeights) -> dict[str, Tensor]:
        column = gamma.column(self.layout, self.rows, self.delta.dtype)[self.bag]
        rows = self.looked_up() * column
        return {"weight": rows.new_zeros(self.slots["weight"].part_shape).index_add_(0, self.indices, rows)}


def read_embedding_bag(node: Node, slots: dict[int, Slot], n: int) -> Use | None:
    """Operand 0, the table. Raises ValueError for options that mix samples or leave no dense gradient."""
    if node._saved_scale_grad_by_freq or node._saved_sparse:
        raise ValueError(
            "scale_grad_by_freq and sparse must be False in nn.EmbeddingBag: the one divides by how often the whole "
            "batch looked a row up, the other leaves no dense gradient"
        )
    plain = 0 in slots and slots[0].plain and node._saved_mode in (SUM, MEAN)
    return BagUse(node, slots[0], n) if plain else None
