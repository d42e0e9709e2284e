"""Any node at all, differentiated by itself once for each sample: with δ of that sample alone, all others zero.

Costs n times the node, where the slow path costs n times the model.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

from clipbench.per_sample.care import promoted
from clipbench.per_sample.cost import SUBGRAPH_BYTES
from clipbench.per_sample.factors import across, row_norms
from clipbench.per_sample.layout import SampleWeights
from clipbench.per_sample.pullback import apart, batched, node_products
from clipbench.per_sample.rules.base import Use, weighted_rows
from clipbench.per_sample.slots import Node, Slot


class NodeUse(Use):
    """g_k = Jᵀ (δ with the rows of sample k alone), J the Jacobian of this one node."""

    whole_graph = True
    shows_samples = False

    def __init__(self, node: Node, slots: dict[str, Slot], operands: dict[str, int], lead: int, n: int) -> None:
        super().__init__(node, slots, node._input_metadata[0].shape[:lead], n)
        self.operands = operands
        self.keep: Tensor | None = None

    def gradients(self, first: int, last: int, roles: Collection[str]) -> list[Tensor]:
        """Gradients of samples first … last − 1, one (last − first, *part_shape) for each role."""
        owner = self.layout.spread(torch.arange(1, self.n + 1, device=self.delta.device), self.rows)
        chosen = torch.arange(first + 1, last + 1, device=self.delta.device)[:, None] == owner
        chosen = chosen.reshape(last - first, *self.lead, *[1] * (self.delta.dim() - len(self.lead)))
        deltas = torch.where(chosen, self.delta, 0.0)
        found = batched(partial(self.products, roles), [deltas, chosen], type(self.node).__name__)
        return [
            self.delta.new_zeros(last - first, *self.slots[role].part_shape) if rows is None else promoted(rows)
            for role, rows in zip(roles, found, strict=True)
        ]

    def norms(self, roles: Collection[str]) -> Tensor:
        parts = []
        for first, last in self.chunks(roles):
            rows = [row_norms(g) for g in self.gradients(first, last, roles)]
            parts.append(across(rows))
        return torch.cat(parts)

    def products(self, roles: Collection[str], delta: Tensor, chosen: Tensor | None = None) -> Sequence[Tensor | None]:
        """Jᵀ δ for each role; `chosen` are the rows of δ that are not zero."""
        return node_products(self.node, [self.operands[role] for role in roles], delta, chosen)

    def chunks(self, roles: Collection[str]) -> Iterator[tuple[int, int]]:
        """First and last samples of parts of the batch whose gradients fit into one working set."""
        held = self.delta.numel() + sum(self.slots[role].param.numel() for role in roles)
        size = max(1, int(SUBGRAPH_BYTES // (8 * held)))
        return ((first, min(first + size, self.n)) for first in range(0, self.n, size))

    def instances(self, role: str, first: int, last: int) -> Tensor:
        return self.gradients(first, last, [role])[0]

    def drop(self, keep: Tensor) -> None:
        self.keep = keep

    def weighted(self, gamma: SampleWeights) -> dict[str, Tensor]:
        # What the node saved of a lost sample would reach the sum: 0 · inf = NaN. Nor need own code be linear in δ.
        if self.keep is not None or isinstance(self.node, FunctionCtx):
            return self._weighted_rows(gamma.values)
        column = gamma.column(self.layout, self.rows, self.delta.dtype)
        delta = self.delta * column.reshape(*self.lead, *[1] * (self.delta.dim() - len(self.lead)))
        delta = delta.to(self.delta.dtype)
        found = apart(self.products(self.slots, delta))
        return {role: g for role, g in zip(self.slots, found, strict=True) if g is not None}

    def _weighted_rows(self, gamma: Tensor) -> dict[str, Tensor]:
        """The same from the gradients of each sample, without those that are not kept."""
        sums: dict[str, Tensor] = {}
        for first, last in self.chunks(self.slots):
            for role, rows in zip(self.slots, self.gradients(first, last, self.slots), strict=True):
                if self.keep is not None:
                    rows = torch.where(self.keep[first:last].reshape(-1, *[1] * (rows.dim() - 1)), rows, 0.0)
                part = weighted_rows(gamma[first:last], rows)
                sums[role] = sums[role] + part if role in sums else part
        return sums


class EntryUse(NodeUse):
    """The same with every entry a row of its own: experts' batches side by side, each of whose places is a sample's."""


def read_node(node: Node, slots: dict[int, Slot], n: int) -> Use | None:
    """Operands whatever; None where the node has several outputs, or none of its axes can be that of the samples."""
    lead = _lead(tuple(node._input_metadata[0].shape), n)
    return None if lead is None else _read(NodeUse, node, slots, lead, n)


def read_entries(node: Node, slots: dict[int, Slot], n: int) -> Use | None:
    """Operands whatever; None where the node has several outputs, or no axis."""
    axes = len(node._input_metadata[0].shape)
    return _read(EntryUse, node, slots, axes, n) if axes else None


def _read(kind: type[NodeUse], node: Node, slots: dict[int, Slot], lead: int, n: int) -> Use | None:
    if len(node._input_metadata) > 1:
        return None
    names = {index: f"operand {index}" for index in slots}
    return kind(node, {names[i]: slot for i, slot in slots.items()}, {name: i for i, name in names.items()}, lead, n)


def _lead(shape: tuple[int, ...], n: int) -> int | None:
    """Number of leading axes that hold the rows: up to the last one of length n, or one."""
    fitting = [axis for axis, length in enumerate(shape) if length == n]
    if fitting:
        return fitting[-1] + 1 if n > 1 else 1
    return 1 if shape and shape[0] else None
