"""Embedding tables: a sample's gradient has the rows it looked up, each summed over the positions that did."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor

from clipbench.per_sample.care import deep, grams_apart, promoted
from clipbench.per_sample.cost import CHUNK_BYTES, gram_cost, traffic_cost
from clipbench.per_sample.factors import gram_sum, row_norms
from clipbench.per_sample.layout import SampleWeights
from clipbench.per_sample.rules.base import Use
from clipbench.per_sample.slots import Node, Slot, signed


class EmbeddingUse(Use):
    """out_t = W[i_t]: g_k[v] = Σ_{t: i_t = v} δ_{kt}. Rows of `padding_idx` get no gradient."""

    shows_samples = False

    def __init__(self, node: Node, slots: dict[str, Slot], indices: Tensor, padding: int, n: int) -> None:
        super().__init__(node, slots, indices.shape, n)
        self.indices = indices
        self.padding = padding

    def kept(self, delta: Tensor) -> Tensor:
        """δ without the positions that looked up the padding row."""
        if self.padding < 0:
            return delta
        return delta.masked_fill((self.indices == self.padding).unsqueeze(-1), 0.0)

    def flat(self, tensor: Tensor) -> Tensor:
        """δ as (rows, entries of a row of the table), indices as (rows,)."""
        return tensor.reshape(self.rows, -1) if tensor.dtype != self.indices.dtype else tensor.reshape(self.rows)

    def lookups(self, role: str) -> tuple[Tensor, Tensor] | None:
        return self.split(self.indices), self.split(self.kept(self.delta))

    def norms(self, roles: Collection[str]) -> Tensor:
        return lookup_norms(self.split(self.indices), self.split(self.kept(self.delta)))

    def instances(self, role: str, first: int, last: int) -> Tensor:
        delta = promoted(self.split(self.kept(self.delta))[first:last])
        indices = self.split(self.indices)[first:last].unsqueeze(-1).expand_as(delta)
        shape = self.slots[role].part_shape
        table = delta.new_zeros(last - first, shape[0], delta.shape[2])
        return table.scatter_add_(1, indices, delta).reshape(last - first, *shape)

    def weighted(self, gamma: SampleWeights) -> dict[str, Tensor]:
        rows = gamma.times(self.flat(self.kept(self.delta)), self.layout)
        shape = self.slots["weight"].part_shape
        table = rows.new_zeros(shape[0], rows.shape[1]).index_add_(0, self.indices.reshape(-1), rows)
        return {"weight": table.reshape(shape)}


def lookup_norms(indices: Tensor, rows: Tensor) -> Tensor:
    """Norms (n,) of tables with Σ_{t: i_t = v} rows_t at v, from indices (n, positions), rows (n, positions, width).

    √ Σ_{ts} [i_t = i_s] ⟨rows_t, rows_s⟩, or from the sums over equal indices where there are many positions.
    """
    positions, width = rows.shape[1:]
    same = indices.unsqueeze(2) == indices.unsqueeze(1)
    cheaper = gram_cost(positions, width, 0) < traffic_cost(32.0 * positions * width, CHUNK_BYTES + 1)
    if cheaper and grams_apart(rows):
        rows = deep(rows)
        return gram_sum(torch.bmm(rows, rows.mH), same)
    rows = promoted(rows)
    first = same.to(torch.uint8).argmax(2)  # where each index was looked up first
    sums = torch.zeros_like(rows, memory_format=torch.contiguous_format)
    return row_norms(sums.scatter_add_(1, first.unsqueeze(-1).expand_as(rows), rows))


def read_embedding(node: Node, slots: dict[int, Slot], n: int) -> Use | None:
    """Operand 0 is the table. Raises ValueError for options that mix samples or leave no dense gradient."""
    if node._saved_scale_grad_by_freq:
        raise ValueError(
            "scale_grad_by_freq must be False in nn.Embedding, got True: it divides a row's gradient by the number of "
            "times the whole batch looked it up, so no sample has a gradient of its own"
        )
    if node._saved_sparse:
        raise ValueError("sparse must be False in nn.Embedding, got True: per-sample clipping returns dense gradients")
    if slots[0].transposed or slots[0].reshaped or not slots[0].whole:
        return None
    padding = node._saved_padding_idx
    padding = padding if padding < 2**62 else -1
    return EmbeddingUse(node, {"weight": slots[0]}, node._saved_indices, padding, n)


def read_index(node: Node, slots: dict[int, Slot], n: int) -> Use | None:
    """p[i] with one integer index of the first axis, as a table of whatever lies behind it; operand 0."""
    if set(slots) != {0} or not slots[0].plain:
        return None
    indices = node._saved_indices
    single = len(indices) > 0 and indices[0] is not None and all(index is None for index in indices[1:])
    if not single or indices[0].dtype not in (torch.int64, torch.int32):
        return None
    places = torch.where(indices[0] < 0, indices[0] + slots[0].shape[0], indices[0])
    return EmbeddingUse(node, {"weight": slots[0]}, places, -1, n)


def read_index_select(node: Node, slots: dict[int, Slot], n: int) -> Use | None:
    """p.index_select(0, i); operand 0."""
    plain = set(slots) == {0} and slots[0].plain and signed(node._saved_dim, len(slots[0].shape)) == 0
    return EmbeddingUse(node, {"weight": slots[0]}, node._saved_index, -1, n) if plain else None
