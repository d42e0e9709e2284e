"""What is found in one graph, and what is remembered of graphs."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from torch import Tensor

from clipbench.per_sample.rules import Reader, Use
from clipbench.per_sample.slots import Derived, Node, Root, Slot

if TYPE_CHECKING:
    from clipbench.per_sample.replay import Replay

KEPT = 64
"""Graphs whose reading is kept."""
NUMBERED = 1024
"""Graphs that are told from others."""
OWN = "below a function or hook of your own that need not be linear in its gradients"
"""Why parameters are slow of which no sum over samples may be taken."""
Reading = tuple[Use, str]
"""A use and the role in which it reads a parameter."""
Key = tuple[object, ...]
"""What a node is, the same from step to step: its name, its shape and the parameters below it."""


@dataclass
class Known:
    """What earlier walks found: nodes to pass on, as their rows are no samples', and nodes to differentiate alone."""

    passed: set[Key] = field(default_factory=set)
    single: set[Key] = field(default_factory=set)
    replays: dict[Hashable, Replay] = field(default_factory=dict)
    numbers: dict[Hashable, int] = field(default_factory=dict)
    last: int = 0
    forgotten: int = 0

    def forget(self) -> None:
        """As if nothing had been found; versions that were do not come again."""
        self.forgotten += 1 + len(self.passed) + len(self.single)
        self.passed, self.single = set(), set()

    def number(self, signature: Hashable) -> int | None:
        """A number for a signature, which is long; None for none."""
        if signature is None:
            return None
        found = self.numbers.get(signature)
        if found is None:
            if len(self.numbers) >= NUMBERED:
                self.numbers.clear()
            found = self.numbers[signature] = self.last = self.last + 1
        return found

    @property
    def version(self) -> int:
        """Grows with what is found."""
        return len(self.passed) + len(self.single) + self.forgotten

    def replay(self, signature: Hashable, n: int) -> Replay | None:
        """How a graph with this signature was read, for n samples, as long as nothing else was found since."""
        return None if signature is None else self.replays.get((signature, n, self.version))

    def drop(self, signature: Hashable, n: int) -> None:
        """Forget how a graph was read."""
        self.replays.pop((signature, n, self.version), None)

    def keep(self, signature: Hashable, n: int, replay: Replay) -> None:
        """Keep how a graph was read."""
        if signature is None:
            return
        if len(self.replays) >= KEPT:
            del self.replays[next(iter(self.replays))]
        self.replays[signature, n, self.version] = replay


@dataclass
class Trace:
    """What one graph holds: `uses` by rule, and `slow`, the parameters (by id) that no rule covers, each with `why`.

    `leaves` are the parameters below each derived tensor (by its id); `dead_ends` nodes from which no way led to
    samples, in the order of the walk; `signature` tells the graph and its uses from others (None: it cannot), `version`
    the walk from others over the same graph; `replay` is what it was read by, if it was; `made` are the nodes that
    compute something from parameters alone.
    """

    uses: list[Use] = field(default_factory=list)
    slow: dict[int, Tensor] = field(default_factory=dict)
    why: dict[int, str] = field(default_factory=dict)
    leaves: dict[int, dict[int, Tensor]] = field(default_factory=dict)
    dead_ends: list[Key] = field(default_factory=list)
    version: int = 0
    signature: Hashable = None
    replay: Replay | None = None
    made: list[Node] = field(default_factory=list)

    def below(self, root: Root) -> dict[int, Tensor]:
        """The parameters (by id) that a root is, or is made of."""
        return self.leaves[id(root)] if isinstance(root, Derived) else {id(root): root}

    def reject(self, slots: Iterable[Slot], why: str) -> None:
        """Send the parameters of `slots` to the slow path, and drop every use of them."""
        for slot in slots:
            for key, param in self.below(slot.param).items():
                self.slow.setdefault(key, param)
                self.why.setdefault(key, why)
        for use in self.uses:
            use.slots = {
                role: slot for role, slot in use.slots.items() if not self.below(slot.param).keys() <= self.slow.keys()
            }
        self.uses = [use for use in self.uses if use.slots]

    def key(self, use: Use) -> Key:
        """What lets a use be known again at the next step."""
        leaves = {key for slot in use.slots.values() for key in self.below(slot.param)}
        return *node_key(use.node, leaves), type(use).__name__


class Recipe(NamedTuple):
    """A use, the function that read it and the slots it was given."""

    use: Use
    reader: Reader
    slots: dict[int, Slot]


def node_key(node: Node, leaves: Iterable[int]) -> Key:
    """The key of a node above the parameters with ids `leaves`."""
    return type(node).__name__, tuple(node._input_metadata[0].shape), frozenset(leaves)
