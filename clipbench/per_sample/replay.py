"""Reading a graph as an earlier one with the same signature was read, without asking at every node."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from torch import Tensor

from clipbench.per_sample.rules import Reader, Use
from clipbench.per_sample.signature import Edges
from clipbench.per_sample.slots import Derived, Node, Root, Slot
from clipbench.per_sample.traces import Recipe, Trace


class PortableSlot(NamedTuple):
    """A slot of a derived tensor, by the number of its node in the graph and its output."""

    node: int
    output: int
    slot: tuple[int, int, bool, tuple[int, ...] | None]


class Step(NamedTuple):
    """One use: the number of its node, what reads it, its operands, and what came of it."""

    node: int
    reader: Reader
    slots: dict[int, Slot | PortableSlot]
    kind: type[Use]
    roles: list[str]


class Replay:
    """Holds parameters, but nothing of the graph it was made from.

    signature, made: those of the trace.
    shared: groups of readings of the same parameters, by number of use and role, where no parameter is read through
    others nor in parts that overlap (None: not known, or there is such a one).
    """

    def __init__(
        self,
        order: Sequence[tuple[Node, Edges]],
        params: Mapping[int, object],
        recipes: Sequence[Recipe],
        found: Trace,
    ) -> None:
        number = {node: index for index, (node, _) in enumerate(order)}
        self.shared: list[list[tuple[int, str]]] | None = None
        self.leaves = [(index, _parameter(node, params)) for index, (node, _) in enumerate(order) if _is_leaf(node)]
        self.signature = found.signature
        self.made = [number[node] for node in found.made]
        self.below: dict[tuple[int, int], dict[int, Tensor]] = {}
        self.steps = []
        for recipe in recipes:
            slots = {index: self._portable(slot, number, found) for index, slot in recipe.slots.items()}
            use = recipe.use
            self.steps.append(Step(number[use.node], recipe.reader, slots, type(use), list(use.slots)))

    def _portable(self, slot: Slot, number: Mapping[Node, int], found: Trace) -> Slot | PortableSlot:
        root = slot.param
        if not isinstance(root, Derived):
            return slot
        place = number[root.node], root.output
        self.below[place] = found.leaves[id(root)]
        return PortableSlot(*place, (slot.start, slot.stop, slot.transposed, slot.new_shape))

    def read(self, order: Sequence[tuple[Node, Edges]], params: Mapping[int, object], n: int) -> Trace | None:
        """The uses of a graph; None where it is not read in the same way after all (a factor is another now)."""
        if any(_parameter(order[index][0], params) != known for index, known in self.leaves):
            return None
        found = Trace(made=[order[index][0] for index in self.made])
        roots: dict[tuple[int, int], Root] = {}
        for place, leaves in self.below.items():
            root = roots[place] = Derived(order[place[0]][0], place[1])
            found.leaves[id(root)] = leaves
        for step in self.steps:
            slots = {
                index: Slot(roots[slot.node, slot.output], *slot.slot) if isinstance(slot, PortableSlot) else slot
                for index, slot in step.slots.items()
            }
            use = step.reader(order[step.node][0], slots, n)
            if type(use) is not step.kind or list(use.slots) != step.roles:
                return None
            found.uses.append(use)
        return found


def _is_leaf(node: Node) -> bool:
    return type(node).__name__ == "AccumulateGrad"


def _parameter(node: Node, params: Mapping[int, object]) -> int | None:
    """The id of a leaf that is one of the parameters."""
    number = id(node.variable)
    return number if number in params else None
