"""Parameters that meet the samples through a part of the graph that has no samples: 1 + w, tables looked up once, …

The rules give per-sample gradients h_k with respect to the derived tensors v(w) that the samples meet. By the chain
rule g_k = Jᵀ h_k, J = ∂v/∂w the same for all samples: the weighted sum Jᵀ Σ_k γ_k h_k takes one vector-Jacobian
product, the norms n of them, sent through in one batch. That holds whatever J is, so nothing need be known of the
sub-graph. A parameter that is read both directly and through a sub-graph, or in parts that overlap, has one gradient:
all its readings are added before a norm is taken.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx
from torch.autograd.graph import GradientEdge, get_gradient_edge

from clipbench.per_sample.care import promoted
from clipbench.per_sample.cost import SUBGRAPH_BYTES
from clipbench.per_sample.factors import across, row_norms
from clipbench.per_sample.linearity import linear_below
from clipbench.per_sample.pullback import apart, batched, kinds_below, nodes_below, products
from clipbench.per_sample.rules.base import weighted_rows
from clipbench.per_sample.slots import Derived, Root, Slot
from clipbench.per_sample.traces import Reading, Trace


class Entangled:
    """Readings whose gradients have to be formed and added up before a norm is taken, and the tensors they read."""

    def __init__(self, readings: Sequence[Reading], params: dict[int, Tensor]) -> None:
        self.readings = list(readings)
        self.params = params
        roots = {id(use.slots[role].param): use.slots[role].param for use, role in readings}
        self.derived = [root for root in roots.values() if isinstance(root, Derived)]

    @property
    def bytes_per_sample(self) -> float:
        """Memory of one sample's gradients, before and after the sub-graph."""
        entries = sum(root.numel() for root in self.derived) + sum(param.numel() for param in self.params.values())
        return 8.0 * entries

    def merged(self, other: Entangled) -> Entangled:
        """Both, to be sent through the graph together."""
        return Entangled(self.readings + other.readings, self.params | other.params)

    @property
    def own_code(self) -> bool:
        """Whether a function of the user's own is below: it need not be linear in the gradients that it is given."""
        return any(isinstance(node, FunctionCtx) for node in nodes_below(root.node for root in self.derived))

    def norms(self) -> Tensor:
        """‖g_k‖₂ of all parameters below, (n,)."""
        parts = [across([row_norms(rows) for rows in found.values()]) for _, found in self._chunks()]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def add_weighted(self, gamma: Tensor, keep: Tensor | None) -> None:
        """Add Σ_k γ_k g_k to `.grad`, one sample's gradient at a time through the sub-graph."""
        for samples, found in self._chunks():
            for key, rows in found.items():
                if keep is not None:
                    rows = torch.where(keep[samples].reshape(-1, *[1] * (rows.dim() - 1)), rows, 0.0)
                Slot(self.params[key]).add(weighted_rows(gamma[samples], rows))

    def _chunks(self) -> Iterator[tuple[slice, dict[int, Tensor]]]:
        """Parts of the batch that fit into one working set: which samples, and their gradients by parameter."""
        n = self.readings[0][0].n
        size = max(1, int(SUBGRAPH_BYTES // max(self.bytes_per_sample, 1.0)))
        for first in range(0, n, size):
            last = min(first + size, n)
            yield slice(first, last), self._chunk(first, last)

    def _chunk(self, first: int, last: int) -> dict[int, Tensor]:
        totals: dict[int, Tensor] = {}
        for use, role in self.readings:
            slot = use.slots[role]
            add_rows(totals, slot, use.instances(role, first, last))
        if self.derived:
            edges = [get_gradient_edge(param) for param in self.params.values()]
            deltas = [totals[id(root)].to(root.dtype) for root in self.derived]
            outputs = [root.edge for root in self.derived]
            kinds = kinds_below(root.node for root in self.derived)
            pulled = batched(lambda *each: products(outputs, edges, each), deltas, kinds)
            for param, rows in zip(self.params.values(), pulled, strict=True):
                if rows is not None:
                    add_rows(totals, Slot(param), rows)
        return {key: totals[key] for key in self.params if key in totals}


def add_rows(totals: dict[int, Tensor], slot: Slot, rows: Tensor) -> None:
    """Add per-sample gradients (b, *part_shape) of a part to those of its whole, (b, *shape)."""
    key, count = id(slot.param), rows.shape[0]
    rows = promoted(rows).reshape(count, *slot.part_shape)
    if rows.is_complex() and not slot.param.dtype.is_complex:
        rows = rows.real
    if slot.whole and key not in totals:
        totals[key] = rows
        return
    if key not in totals:
        totals[key] = rows.new_zeros((count, *slot.param.shape))
    whole = totals[key]
    start, stop = slot.span
    totals[key] = (
        whole + rows if slot.whole else torch.cat([whole[:, :start], whole[:, start:stop] + rows, whole[:, stop:]], 1)
    )


def linear_to_parameters(found: Trace) -> bool:
    """Whether what users put between derived tensors and parameters, unseen in the graph (hooks), is linear."""
    slots = [slot for use in found.uses for slot in use.slots.values()]
    roots = {id(slot.param): slot.param for slot in slots if isinstance(slot.param, Derived)}
    params = {key: param for root in roots.values() for key, param in fast_leaves(found, root).items()}
    return not roots or linear_below([root.edge for root in roots.values()], list(params.values()))


def entangled(found: Trace) -> list[Entangled]:
    """Groups of readings that share parameters, those that fit into one working set merged."""
    readings = [(use, role) for use in found.uses for role in use.slots]
    groups: dict[int, int] = {}  # parameter → one parameter of its group
    mixed: set[int] = set()

    def head(key: int) -> int:
        while groups.setdefault(key, key) != key:
            key = groups[key]
        return key

    for root in {id(use.slots[role].param): use.slots[role].param for use, role in readings}.values():
        if isinstance(root, Derived):
            keys = list(fast_leaves(found, root))
            mixed.update(keys)
            for key in keys[1:]:
                groups[head(key)] = head(keys[0])
    mixed.update(overlapping(readings))
    parts: dict[int, Entangled] = {}
    for use, role in readings:
        leaves = fast_leaves(found, use.slots[role].param)
        if leaves.keys() & mixed:
            key = head(next(iter(leaves)))
            one = Entangled([(use, role)], leaves)
            parts[key] = parts[key].merged(one) if key in parts else one
    return in_batches(list(parts.values()))


def fast_leaves(found: Trace, root: Root) -> dict[int, Tensor]:
    """Parameters below a root that are not on the slow path."""
    return {key: param for key, param in found.below(root).items() if key not in found.slow}


def in_batches(groups: Sequence[Entangled]) -> list[Entangled]:
    """Groups merged as long as all samples of the merged one fit into one working set."""
    batches: list[Entangled] = []
    for group in sorted(groups, key=lambda group: group.bytes_per_sample):
        n = group.readings[0][0].n
        if batches and n * (batches[-1].bytes_per_sample + group.bytes_per_sample) <= SUBGRAPH_BYTES:
            batches[-1] = batches[-1].merged(group)
        else:
            batches.append(group)
    return batches


def overlapping(readings: Sequence[Reading]) -> set[int]:
    """Ids of roots of which different parts are read that overlap."""
    spans: dict[int, set[tuple[int, int]]] = {}
    for use, role in readings:
        slot = use.slots[role]
        spans.setdefault(id(slot.param), set()).add(slot.span)
    clash = set()
    for key, parts in spans.items():
        ordered = sorted(parts)
        if any(first[1] > second[0] for first, second in itertools.pairwise(ordered)):
            clash.add(key)
    return clash


def pull_back(derived: Sequence[Derived], params: Sequence[Tensor], keep: Tensor | None) -> None:
    """Send the gradients gathered in derived tensors on to the parameters' `.grad`, in one pass for all.

    Where some samples' gradients are finite after the sub-graph, so is their sum; where none is kept (see `keep`),
    a sub-graph that holds an infinite value would make NaN of zeros.
    """
    reached = [root for root in derived if root.grad is not None]
    if not reached:
        return
    edges: list[GradientEdge] = [get_gradient_edge(param) for param in params]
    gradients = apart(products([r.edge for r in reached], edges, [r.grad for r in reached]))
    for param, gradient in zip(params, gradients, strict=True):
        if gradient is not None:
            Slot(param).add(gradient if keep is None else torch.where(keep.any(), gradient, 0.0))
    for root in reached:
        root.grad = None
