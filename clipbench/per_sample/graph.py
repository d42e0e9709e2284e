"""Reading the autograd graph of the losses: which node uses which parameter.

No hook is put on the model. The graph that `losses` carries already says everything: walking it from the parameters
to the losses finds every node that reads a parameter, its saved input, and so every way in which a parameter takes
part, be it a layer called twice, tied weights, `F.linear` on a bare parameter or attention's projections.

What is computed from parameters alone (1 + w, a table looked up once, weight_norm) is a parameter to what reads it.
Where no rule reads a node, there are three ways on. A node all of whose operands are made of parameters passes on:
its output is read in their place. Another is differentiated by itself, once for each sample (`rules.node`). Where its
rows do not belong to samples either, the parameters are slow. A graph does not show data without a gradient, so a rule
may take a node for one that meets samples that does not, and the walk may pass one on that does: the check of the rows
(`probe`) tells the first, a dead end the second. `Known` keeps both.

What a walk made of a graph is kept too, for graphs like it (see `replay`).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from clipbench.per_sample.replay import Replay
from clipbench.per_sample.rules import READERS, Reader, Use, read_empty, read_entries, read_node
from clipbench.per_sample.signature import Edges, outline
from clipbench.per_sample.slots import REINDEXINGS, Derived, Node, Root, Slot, resolve
from clipbench.per_sample.traces import Known, Recipe, Trace, node_key


def trace(losses: Tensor, params: Mapping[int, object], known: Known) -> Trace:
    """Every use of the parameters with ids `params` below `losses` (n,). Raises ValueError for refused layers.

    A graph like an earlier one is read as that was (see `replay`).
    """
    found = None
    while found is None:
        found = _look(losses, params, known)
    return found


def _look(losses: Tensor, params: Mapping[int, object], known: Known) -> Trace | None:
    """One look at the graph; None where that told how to look again, which is noted in `known`."""
    order, signature = outline(losses.grad_fn, output=losses.output_nr)
    if signature is None and any(meta.is_nested_tensor for node, _ in order for meta in _outputs(node)):
        return _all_slow(order, params)
    key = known.number(signature)
    replay = known.replay(key, len(losses))
    if replay is not None:
        found = replay.read(order, params, len(losses))
        if found is None:
            known.drop(key, len(losses))
        else:
            found.signature, found.version, found.replay = replay.signature, known.version, replay
        return found
    walk = _Walk(losses.shape[0], params, known)
    for node, edges in order:
        walk.visit(node, edges)
    found = walk.finish(losses.grad_fn)
    found.made = [node for node, _ in order if node in walk.made and type(node).__name__ != "AccumulateGrad"]
    whole = key if key is not None else known.number(outline(losses.grad_fn, walk.made, losses.output_nr)[1])
    found.signature = None if whole is None else known.number((whole, *_places(order, found.uses)))
    news = [end for end in found.dead_ends if end not in known.single and end not in known.passed]
    if news:
        known.single.add(news[0])
        return None
    if not found.slow:
        known.keep(key, len(losses), Replay(order, params, walk.recipes, found))
    return found


def _places(order: Sequence[tuple[Node, Edges]], uses: Sequence[Use]) -> list[Hashable]:
    """Which nodes of the graph are read, and how: that may differ for the same graph, with the parameters in it."""
    number = {node: index for index, (node, _) in enumerate(order)}
    return [(number[use.node], type(use)) for use in uses]


def _outputs(node: Node) -> Any:
    return () if type(node).__name__ == "AccumulateGrad" else node._input_metadata


def _all_slow(order: Sequence[tuple[Node, Edges]], params: Mapping[int, object]) -> Trace:
    """Every parameter's gradient one by one: nested tensors have no rows that could be told apart."""
    found = Trace()
    leaves = [node.variable for node, _ in order if type(node).__name__ == "AccumulateGrad"]
    found.reject([Slot(leaf) for leaf in leaves if id(leaf) in params], "among nested tensors")
    return found


class _Walk:
    """One way through a graph from the parameters up."""

    def __init__(self, n: int, params: Mapping[int, object], known: Known) -> None:
        self.n, self.params, self.known = n, params, known
        self.passed, self.single = {key[0] for key in known.passed}, {key[0] for key in known.single}
        self.found = Trace(version=known.version)
        self.made: set[Node] = set()  # nodes that compute something from parameters alone
        self.trained: set[Node] = set()  # nodes with parameters below; what else has a gradient is data to the model
        self.roots: dict[tuple[Node, int], Root] = {}
        self.rejected: list[tuple[Slot, str]] = []
        self.recipes: list[Recipe] = []

    def visit(self, node: Node, edges: Edges) -> None:
        """Read the node, let it pass, or reject what it reads."""
        name = type(node).__name__
        if name == "AccumulateGrad":
            if id(node.variable) in self.params:
                self.made.add(node)
                self.trained.add(node)
            return
        if name in REFUSED:
            raise ValueError(REFUSED[name])
        if any(child in self.trained for child, _ in edges):
            self.trained.add(node)
        operands = [index for index, (child, _) in enumerate(edges) if child in self.made]
        if not operands:
            return
        if name in REINDEXINGS:
            self.made.add(node)
            return
        others = [child for index, (child, _) in enumerate(edges) if index not in operands]
        alone = not any(child in self.trained for child in others)
        samples = any(self.n in metadata.shape for metadata in node._input_metadata)
        if not others and not samples and (len(operands) > 1 or name not in READERS):
            self.made.add(node)  # nothing but parameters: there is no need to ask the rules
            return
        self._read(node, edges, operands, alone, samples)

    def _read(self, node: Node, edges: Edges, operands: list[int], alone: bool, samples: bool) -> None:
        """The node's use by its rule; what that leaves is passed on, differentiated by itself or rejected."""
        bare = {index: Slot(self.root(*edges[index])) for index in operands}
        empty = read_empty(node, bare, self.n)
        if empty is not None:
            self._take(empty, read_empty, bare)
            return
        slots = {index: resolve(*edges[index], self.root) for index in operands}
        use, rest = self._by_rule(node, slots)
        if use is None and any(slots[index].param is not slot.param for index, slot in bare.items()):
            slots = bare
            use, rest = self._by_rule(node, slots)
        refused = use is not None and self._passes(use)
        if use is not None and not refused and not rest:
            self._take(use, READERS[type(node).__name__], slots)
            return
        if alone and (refused or not samples or (use is None and not self._single(node))):
            self.made.add(node)
            return
        if refused:  # its rows are no samples', but those of other axes may be
            rest = operands
        elif use is not None:
            self._take(use, READERS[type(node).__name__], slots)
        if rest:
            self._by_itself(node, {index: bare[index] for index in rest}, alone)

    def _take(self, use: Use, reader: Reader, slots: dict[int, Slot]) -> None:
        """Keep a use, and how it was made."""
        self.found.uses.append(use)
        self.recipes.append(Recipe(use, reader, slots))

    def _by_rule(self, node: Node, slots: dict[int, Slot]) -> tuple[Use | None, list[int]]:
        """What a rule makes of the node, and the operands it leaves."""
        reader = READERS.get(type(node).__name__)
        use = reader(node, dict(slots), self.n) if reader else None
        if use is None or use.rows == 0:
            return None, list(slots)
        covered = {id(slot) for slot in use.slots.values()}
        return use, [index for index, slot in slots.items() if id(slot) not in covered]

    def _by_itself(self, node: Node, slots: dict[int, Slot], alone: bool) -> None:
        """Differentiate the node once for each sample, where its output has their rows."""
        use = read_node(node, slots, self.n)
        if use is not None and not self._passes(use):
            self._take(use, read_node, slots)
            return
        if alone:
            self.made.add(node)
            return
        by_entry = read_entries(node, slots, self.n)
        if by_entry is not None and not self._passes(by_entry):
            self._take(by_entry, read_entries, slots)
        else:
            why = MIXES if use is not None else f"read by {type(node).__name__}, which shows no axis of samples"
            self.rejected += [(slot, why) for slot in slots.values()]

    def _passes(self, use: Use) -> bool:
        """Whether it is known that the use's rows do not belong to samples."""
        return type(use.node).__name__ in self.passed and self.found.key(use) in self.known.passed

    def _single(self, node: Node) -> bool:
        """Whether the node led to a dead end when it was passed on."""
        return type(node).__name__ in self.single and node_key(node, self._leaves(node)) in self.known.single

    def root(self, node: Node, output: int) -> Root:
        """The parameter, or the derived tensor, that output `output` of `node` is."""
        key = (node, output)
        found = self.roots.get(key)
        if found is None:
            if type(node).__name__ == "AccumulateGrad":
                found = node.variable
            else:
                found = Derived(node, output)
                self.found.leaves[id(found)] = self._leaves(node)
            self.roots[key] = found
        return found

    def _leaves(self, node: Node) -> dict[int, Tensor]:
        """The parameters below a node, by id."""
        leaves: dict[int, Tensor] = {}
        for child, _ in outline(node)[0]:
            if child in self.made and type(child).__name__ == "AccumulateGrad":
                leaves[id(child.variable)] = child.variable
        return leaves

    def finish(self, root: Node) -> Trace:
        """The trace, after what was rejected took its other uses with it."""
        if root in self.made:
            self.rejected.append((Slot(self.root(root, 0)), "it meets no axis of samples"))
        for slot, why in self.rejected:
            self.found.reject([slot], why)
            if isinstance(slot.param, Derived):
                self._note_dead_end(slot.param)
        return self.found

    def _note_dead_end(self, root: Derived) -> None:
        """Keep the nodes below that have an axis of samples: at the lowest the samples may have come in unseen."""
        for node, _ in outline(root.node)[0]:
            reads = node in self.made and type(node).__name__ not in REINDEXINGS and node._input_metadata
            if reads and self.n in node._input_metadata[0].shape:
                self.found.dead_ends.append(node_key(node, self._leaves(node)))


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


def trace_packed(losses: Tensor, params: Mapping[int, object], known: Known) -> Trace:
    """`trace` for graphs whose saved tensors are packed, as by activation checkpointing.

    Outside a backward pass every tensor that is read would recompute its whole checkpointed region; inside one, a
    region is recomputed once for all of them. Every look takes a pass of its own, as each hands a tensor out once.
    """
    found: list[Trace | None] = [None]
    while found[-1] is None:
        with torch.enable_grad():
            anchor = torch.zeros((), device=losses.device, requires_grad=True)
            passing = _InBackward.apply(anchor, lambda: found.append(_look(losses, params, known)))  # type: ignore[no-untyped-call]
        torch.autograd.backward(passing, inputs=[anchor])
    return found[-1]


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
MIXES = "its rows mix samples"
REFUSED = {
    "CheckpointFunctionBackward": "losses must not pass through checkpoint(use_reentrant=True), got such a node: it "
    "hides the layers inside it; use torch.utils.checkpoint.checkpoint(…, use_reentrant=False)",
    "CompiledFunctionBackward": "losses must come from a model that runs eagerly, got the output of torch.compile: it "
    "hides the layers inside it; call the clipper on the uncompiled model",
}
