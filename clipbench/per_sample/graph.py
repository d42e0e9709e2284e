"""Reading the autograd graph of the losses: which node uses which parameter.

No hook is put on the model. The graph that `losses` carries already says everything: walking it from the losses
finds every node that reads a parameter, its saved input, and so every way in which a parameter takes part, be it a
layer called twice, tied weights, `F.linear` on a bare parameter or attention's projections.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from clipbench.per_sample.rules import READERS, Use
from clipbench.per_sample.slots import REINDEXINGS, Node, Slot, resolve

Reading = tuple[Use, str]
"""A use and the role in which it reads a parameter."""


@dataclass
class Trace:
    """What one graph holds: `uses` by rule, `slow`, the parameters (by id) that no rule covers, and all `nodes`."""

    uses: list[Use] = field(default_factory=list)
    nodes: list[Node] = field(default_factory=list)
    slow: dict[int, Tensor] = field(default_factory=dict)

    def reject(self, slots: Iterable[Slot]) -> None:
        """Send the parameters of `slots` to the slow path, and drop every use of them."""
        self.slow.update((id(slot.param), slot.param) for slot in slots)
        for use in self.uses:
            use.slots = {role: slot for role, slot in use.slots.items() if id(slot.param) not in self.slow}
        self.uses = [use for use in self.uses if use.slots]

    def shared(self) -> list[list[Reading]]:
        """Readings of the same part of a parameter, for every part that is read at least twice."""
        readings: dict[int, list[Reading]] = {}
        for use in self.uses:
            for role, slot in use.slots.items():
                readings.setdefault(id(slot.param), []).append((use, role))
        parts: dict[object, list[Reading]] = {}
        for group in readings.values():
            if len(group) > 1:
                for use, role in group:
                    parts.setdefault(use.slots[role].key, []).append((use, role))
        return [part for part in parts.values() if len(part) > 1]


def trace(losses: Tensor, params: Mapping[int, object]) -> Trace:
    """Every use of the parameters with ids `params` below `losses` (n,). Raises ValueError for refused layers."""
    found = Trace()
    rejected: list[Slot] = []
    n = losses.shape[0]
    stack: list[Node] = [losses.grad_fn]
    seen: set[Node] = {losses.grad_fn}
    while stack:
        node = stack.pop()
        found.nodes.append(node)
        slots: dict[int, Slot] = {}
        for index, (child, output) in enumerate(node.next_functions):
            if child is None:
                continue
            if type(child).__name__ in REINDEXINGS:
                slot = resolve(child, output, params)
                if slot is not None:
                    slots[index] = slot
                    continue
            if child not in seen:
                seen.add(child)
                stack.append(child)
        name = type(node).__name__
        if name in REFUSED:
            raise ValueError(REFUSED[name])
        if slots:
            _read(node, name, slots, n, found, rejected)
    if rejected:
        found.reject(rejected)
    overlapping = _overlapping(found)
    if overlapping:
        found.reject(overlapping)
    return found


class _InBackward(torch.autograd.Function):
    """Runs a call inside a backward pass of its own."""

    @staticmethod
    def forward(ctx: Any, anchor: Tensor, call: Callable[[], object]) -> Tensor:
        ctx.call = call
        return anchor.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, None]:
        with torch.no_grad():
            ctx.call()
        return None, None


def trace_packed(losses: Tensor, params: Mapping[int, object]) -> Trace:
    """`trace` for graphs whose saved tensors are packed, as by activation checkpointing.

    Outside a backward pass every tensor that is read would recompute its whole checkpointed region; inside one, a
    region is recomputed once for all of them.
    """
    found: list[Trace] = []
    with torch.enable_grad():
        anchor = torch.zeros((), device=losses.device, requires_grad=True)
        passed = _InBackward.apply(anchor, lambda: found.append(trace(losses, params)))  # type: ignore[no-untyped-call]
    torch.autograd.backward(passed, inputs=[anchor])
    return found[0]


def packed(found: Trace) -> bool:
    """Whether saved tensors of the graph pass through hooks."""
    for use in found.uses:
        kind = type(use.node)
        if kind not in _SAVED:
            _SAVED[kind] = [name for name in dir(kind) if name.startswith("_raw_saved_")]
        for name in _SAVED[kind]:
            if getattr(getattr(use.node, name), "unpack_hook", None) is not None:
                return True
    return False


_SAVED: dict[type, list[str]] = {}
"""Names of a node type's saved tensors."""


def _read(node: Node, name: str, slots: dict[int, Slot], n: int, found: Trace, rejected: list[Slot]) -> None:
    """Add the node's use to `found`, and the slots that no rule covers to `rejected`."""
    reader = READERS.get(name)
    use = reader(node, slots, n) if reader else None
    if use is None or use.rows == 0:
        rejected += slots.values()
        return
    found.uses.append(use)
    if len(use.slots) < len(slots):
        covered = {id(slot) for slot in use.slots.values()}
        rejected += [slot for slot in slots.values() if id(slot) not in covered]


def _overlapping(found: Trace) -> list[Slot]:
    """Slots of parameters of which different but overlapping parts are read (cross terms between them are unknown)."""
    partial = {id(s.param) for use in found.uses for s in use.slots.values() if not s.whole}
    if not partial:
        return []
    slots = [s for use in found.uses for s in use.slots.values() if id(s.param) in partial]
    spans: dict[int, set[tuple[int, int]]] = {}
    for slot in slots:
        spans.setdefault(id(slot.param), set()).add(slot.span)
    clash = set()
    for key, parts in spans.items():
        ordered = sorted(parts)
        if any(first[1] > second[0] for first, second in itertools.pairwise(ordered)):
            clash.add(key)
    return [slot for slot in slots if id(slot.param) in clash]


REFUSED = {
    "CheckpointFunctionBackward": "losses must not pass through checkpoint(use_reentrant=True), got such a node: it "
    "hides the layers inside it; use torch.utils.checkpoint.checkpoint(…, use_reentrant=False)",
    "CompiledFunctionBackward": "losses must come from a model that runs eagerly, got the output of torch.compile: it "
    "hides the layers inside it; call the clipper on the uncompiled model",
}
