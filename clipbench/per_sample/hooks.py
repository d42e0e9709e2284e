"""Gradients as hooks leave them: whether hooks may stand at layers' outputs, and what they make of gradients there.

torch hands out the gradient at an edge as it was before the hooks on that tensor, where it goes on from there to other
edges that are asked for. What goes on is seen by a hook on the node itself. As no graph shows its hooks, and asking
every node would cost a few microseconds each, nodes are asked only where a hook was registered since they last were.

What stands between a layer's node and its parameters is not run at all: views and copies of them, and the node itself.
Where a hook is found there, autograd has to run it (see `bypassed`).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge
from torch.utils.hooks import RemovableHandle

from clipbench.per_sample.modes import OnlyFakeModes
from clipbench.per_sample.rules import Use
from clipbench.per_sample.slots import REINDEXINGS, Derived, Node


class Watch:
    """Tells when to ask: torch numbers its hooks, of all kinds, and the nodes of its graphs."""

    def __init__(self) -> None:
        self._hooks = -1
        self._nodes = 0

    def due(self, uses: Iterable[Use], made: Iterable[Node] = ()) -> bool:
        """Whether hooks may stand at these uses, or at what is `made` of parameters alone, which users may keep.

        So it is where some hooks are newer than the last look, or a node may be older than it.
        Every thread counts its own nodes. One of another thread shows, as a rule, by a number that is not due here.
        """
        if self._hooks != RemovableHandle.next_id:
            return True
        now = next_number()
        nodes = itertools.chain((use.node for use in uses), made)
        return not all(self._nodes <= node._sequence_nr() < now for node in nodes)

    def looked(self) -> None:
        """The graph at hand has been asked."""
        self._hooks = RemovableHandle.next_id
        self._nodes = next_number()


def next_number() -> int:
    """Of the node that this thread makes next."""
    return int(torch.autograd._get_sequence_nr())  # type: ignore[attr-defined]


class Passing:
    """While it is entered, what goes on from the nodes of uses that may be `hooked` is kept."""

    def __init__(self, uses: Sequence[Use]) -> None:
        self._nodes = {use.node for use in uses if use.hooked}
        self._seen: dict[Node, Sequence[Tensor | None]] = {}

    def __enter__(self) -> None:
        def keeper(node: Node) -> RemovableHandle:
            return node.register_prehook(lambda gradients: self._seen.__setitem__(node, gradients))  # type: ignore[no-any-return]

        self._handles = [keeper(node) for node in self._nodes]

    def __exit__(self, *exc: object) -> None:
        for handle in self._handles:
            handle.remove()

    def changed(self, use: Use, found: Sequence[Tensor | None]) -> Sequence[Tensor | None]:
        """The gradients at a use's edges after hooks; those `found` where nothing goes on, for there they are."""
        if not use.hooked:
            return found
        passed = self._seen.get(use.node)
        after = found if passed is None else [passed[edge.output_nr] for edge in use.edges]
        use.hooked = any(new is not old for new, old in zip(after, found, strict=True))
        return after


class Path(NamedTuple):
    """The edges from an operand of a use down to the parameter, or derived tensor, that it is; the last is that's."""

    use: Use
    edges: list[tuple[Node, int]]

    @property
    def derived(self) -> bool:
        """Whether there is something computed from parameters at its end."""
        return type(self.edges[-1][0]).__name__ != "AccumulateGrad"


def bypassed(uses: Sequence[Use]) -> list[Use]:
    """The uses whose node, or whose way down to what it reads, has hooks that rules would leave out."""
    found = {id(use): use for use in uses if _asked(use.node)}
    waiting = [path for use in uses if id(use) not in found for path in _paths(use)]
    found |= {id(path.use): path.use for path in waiting if any(_asked(node) for node, _ in path.edges[:-1])}
    while waiting:
        batch: list[Path] = []
        met: set[Node] = set()
        rest: list[Path] = []
        for path in waiting:
            nodes = {node for node, _ in path.edges[:-1]}
            alone = path.derived or (batch and batch[0].derived)  # below it may be another's end
            if nodes & met or (batch and alone):
                rest.append(path)
            else:
                batch.append(path)
                met |= nodes
        found |= {id(use): use for use in _changed_on_the_way(batch)}
        waiting = rest
    return list(found.values())


def _asked(node: Node) -> bool:
    """Whether hooks were put on a node itself: torch keeps all of them in one dictionary."""
    return any(_shared_with(register) for register in (node.register_hook, node.register_prehook))


def _shared_with(register: Callable[[Callable[..., None]], RemovableHandle]) -> bool:
    handle = register(lambda *gradients: None)
    others = len(handle.hooks_dict_ref() or ()) > 1
    handle.remove()
    return others


def _paths(use: Use) -> list[Path]:
    """The ways from the node's operands through views and copies, those without any left out."""
    roots = [slot.param for slot in use.slots.values()]
    ends = {(root.node, root.output) for root in roots if isinstance(root, Derived)}
    params = {id(root) for root in roots if not isinstance(root, Derived)}
    paths = []
    for edge in use.node.next_functions:
        edges = [edge]
        while edges[-1] not in ends and type(edges[-1][0]).__name__ in REINDEXINGS:
            edges.append(edges[-1][0].next_functions[0])
        node = edges[-1][0]
        ours = edges[-1] in ends or (type(node).__name__ == "AccumulateGrad" and id(node.variable) in params)
        if ours and len(edges) > 1:
            paths.append(Path(use, edges))
    return paths


def _changed_on_the_way(paths: Sequence[Path]) -> list[Use]:
    """Uses of paths, without common nodes, on which a gradient arrives at a tensor as another than was sent there."""
    seen: dict[Node, Sequence[Tensor | None]] = {}
    left: dict[Node, Sequence[Tensor | None]] = {}
    handles = []
    for node in {node for path in paths for node, _ in path.edges[:-1]}:
        handles.append(node.register_prehook(lambda gradients, node=node: seen.__setitem__(node, gradients)))
        handles.append(node.register_hook(lambda below, above, node=node: left.__setitem__(node, below)))
    with OnlyFakeModes():
        sent = []
        for path in paths:
            node, output = path.edges[0]
            meta = node._input_metadata[output]
            sent.append(torch.ones((), dtype=meta.dtype, device=meta.device).expand(tuple(meta.shape)))
        starts, ends = ([GradientEdge(*path.edges[at]) for path in paths] for at in (0, -1))
        try:
            torch.autograd.grad(starts, ends, sent, retain_graph=True, allow_unused=True)
        except Exception:  # whatever a hook raises, it is there
            return [path.use for path in paths]
        finally:
            for handle in handles:
                handle.remove()
    changed = []
    for path, arriving in zip(paths, sent, strict=True):
        gradient: Tensor | None = arriving
        for node, output in path.edges[:-1]:
            if seen[node][output] is not gradient:
                changed.append(path.use)
                break
            gradient = left[node][0]
    return changed
