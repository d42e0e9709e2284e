"""Reading the autograd graph of the losses: which node uses which parameter.

No hook is put on the model. The graph that `losses` carries already says everything: walking it from the losses
finds every node that reads a parameter, its saved input, and so every way in which a parameter takes part, be it a
layer called twice, tied weights, `F.linear` on a bare parameter or attention's projections.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from clipbench.per_sample.rules import READERS, Use
from clipbench.per_sample.slots import Node, Slot, resolve


@dataclass
class Trace:
    """What one graph holds: `uses` by rule, and `slow`, the parameters (by id) that no rule covers."""

    uses: list[Use] = field(default_factory=list)
    slow: dict[int, Tensor] = field(default_factory=dict)

    def reject(self, slots: list[Slot]) -> None:
        """Send the parameters of `slots` to the slow path, and drop every use of them."""
        self.slow.update((id(slot.param), slot.param) for slot in slots)
        for use in self.uses:
            use.slots = {role: slot for role, slot in use.slots.items() if id(slot.param) not in self.slow}
        self.uses = [use for use in self.uses if use.slots]


def trace(losses: Tensor, params: Mapping[int, str]) -> Trace:
    """Every use of the parameters `params` (id → name) below `losses` (n,). Raises ValueError for refused layers."""
    found, rejected = Trace(), []
    n = losses.shape[0]
    stack: list[Node] = [losses.grad_fn]
    seen: set[Node] = {losses.grad_fn}
    while stack:
        node = stack.pop()
        slots: dict[int, Slot] = {}
        for index, (child, output) in enumerate(node.next_functions):
            if child is None:
                continue
            slot = resolve(child, output, params)
            if slot is not None:
                slots[index] = slot
            elif child not in seen:
                seen.add(child)
                stack.append(child)
        if slots:
            rejected += _read(node, slots, n, found)
    found.reject(rejected + _overlapping(found))
    return found


def _read(node: Node, slots: dict[int, Slot], n: int, found: Trace) -> list[Slot]:
    """Add the node's use to `found`; return the slots that no rule covers."""
    name = type(node).__name__
    if name in REFUSED:
        raise ValueError(REFUSED[name])
    reader = READERS.get(name)
    use = reader(node, slots, n) if reader else None
    if use is None or use.rows == 0 or use.rows % n:
        return list(slots.values())
    found.uses.append(use)
    covered = {id(slot) for slot in use.slots.values()}
    return [slot for slot in slots.values() if id(slot) not in covered]


def _overlapping(found: Trace) -> list[Slot]:
    """Slots of parameters of which different but overlapping parts are read (cross terms between them are unknown)."""
    spans: dict[int, set[tuple[int, int]]] = {}
    slots = [slot for use in found.uses for slot in use.slots.values()]
    for slot in slots:
        spans.setdefault(id(slot.param), set()).add(slot.span)
    clash = set()
    for key, parts in spans.items():
        ordered = sorted(parts)
        if any(first[1] > second[0] for first, second in zip(ordered, ordered[1:], strict=False)):
            clash.add(key)
    return [slot for slot in slots if id(slot.param) in clash]


REFUSED = {
    "CheckpointFunctionBackward": "losses must not pass through checkpoint(use_reentrant=True), got such a node: it "
    "hides the layers inside it; use torch.utils.checkpoint.checkpoint(…, use_reentrant=False)",
    "CompiledFunctionBackward": "losses must come from a model that runs eagerly, got the output of torch.compile: it "
    "hides the layers inside it; call the clipper on the uncompiled model",
}
