"""Gradients as hooks leave them: whether hooks may stand at layers' outputs, and what they make of gradients there.

torch hands out the gradient at an edge as it was before the hooks on that tensor, where it goes on from there to other
edges that are asked for. What goes on is seen by a hook on the node itself. As no graph shows its hooks, and asking
every node would cost a few microseconds each, nodes are asked only where a hook was registered since they last were.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils.hooks import RemovableHandle

from clipbench.per_sample.rules import Use
from clipbench.per_sample.slots import Node


class Watch:
    """Tells when to ask: torch numbers its hooks, of all kinds, and the nodes of its graphs."""

    def __init__(self) -> None:
        self._hooks = -1
        self._nodes = 0

    def due(self, uses: Iterable[Use]) -> bool:
        """Whether hooks may stand at these uses: some are newer than the last look, or a node is older than it."""
        return self._hooks != RemovableHandle.next_id or any(use.node._sequence_nr() < self._nodes for use in uses)

    def looked(self) -> None:
        """The graph at hand has been asked."""
        self._hooks = RemovableHandle.next_id
        with _disable_current_modes(), torch.enable_grad():  # a tracer would record it
            newest: Node = torch.zeros((), device="cpu", requires_grad=True).neg().grad_fn
        self._nodes = newest._sequence_nr()


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
