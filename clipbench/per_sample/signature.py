"""What a proof of layouts holds for: the operations between losses and layers, their constants and their shapes."""

from __future__ import annotations

import re
from collections.abc import Callable, Container, Hashable, Mapping, Sequence
from typing import Any

from torch.autograd.function import FunctionCtx

from clipbench.per_sample.slots import Node
from clipbench.per_sample.surrogates import counts_up
from clipbench.per_sample.surroundings import HiddenError, plain, seen_by

OPEN = re.compile(r"\w+Backward\d+|CopyBackwards")
"""Nodes that show their constants. Others, such as a write into part of a tensor (CopySlices), hide them."""
STRIDED = frozenset({"AsStridedBackward0", "AsStridedScatterBackward0"})
"""Nodes that depend on the strides of their operands, which they keep to themselves."""
FACTORS = frozenset({"_saved_alpha", "_saved_beta", "_saved_value", "_saved_other", "_saved_p", "_saved_dropout_p",
                     "_saved_scale"})  # fmt: skip
"""Constants that scale."""
NUMBERS = frozenset({int, bool, type(None), str})
Edges = tuple[tuple[Node, int], ...]
Kind = tuple[tuple[str, ...] | None, Callable[[Node], Hashable] | None]
"""Names of a node's constants, None where they are hidden; and what it keeps elsewhere."""
_KINDS: dict[type, Kind] = {}


def outline(root: Node, made: Container[Node] = (), output: int = 0) -> tuple[list[tuple[Node, Edges]], Hashable]:
    """Every node below `root` with its edges, after all that are below it; and a signature of all of them.

    Signatures are equal only if the same operations run backwards on the same shapes, from the same output of `root`.
    Constants are compared by value (an axis, an index, a step, a padding); of a factor only matters whether it is
    zero, as a schedule may change it at every step and it moves nothing. None where a node hides its constants, those
    in `made` left out.
    """
    order: list[tuple[Node, Edges]] = []
    number: dict[Node | None, int] = {None: -1, root: -1}
    edges = root.next_functions
    stack = [(root, edges, iter(edges))]
    while stack:
        node, edges, rest = stack[-1]
        for child, _ in rest:
            if child not in number:
                below = child.next_functions
                if below:
                    number[child] = -1
                    stack.append((child, below, iter(below)))
                    break
                number[child] = len(order)
                order.append((child, below))
        else:
            stack.pop()
            number[node] = len(order)
            order.append((node, edges))
    return order, _signature(order, number, made, output)


def _signature(
    order: Sequence[tuple[Node, Edges]], number: Mapping[Node | None, int], made: Container[Node], output: int
) -> Hashable:
    """What nodes are, which of them they lead to, the shapes of their gradients, and their constants."""
    parts: list[Any] = [output]
    add = parts.append
    try:
        for node, edges in order:
            kind = type(node)
            leaf = not edges and kind.__name__ == "AccumulateGrad"
            shapes = [node.variable.shape] if leaf else [_shape(meta) for meta in node._input_metadata]
            if made and node in made:
                add(tuple(shapes))
                continue
            add(kind)
            parts += shapes
            if leaf:
                continue
            for child, output in edges:
                add(number[child] if output == 0 else (number[child], output))
            names, special = _KINDS.get(kind) or _learn(kind)
            if names is None:
                return None
            for name in names:
                value = getattr(node, name)
                if type(value) is float and name in FACTORS:
                    value = value != 0.0
                add(value if type(value) in NUMBERS else plain(value))
            if special is not None:
                add(special(node))
    except HiddenError:
        return None
    return tuple(parts)


def _shape(meta: Any) -> tuple[int, ...]:
    """The shape of a gradient. Raises HiddenError for what has none."""
    if meta.is_nested_tensor:
        raise HiddenError
    return tuple(meta.shape)


def _learn(kind: type) -> Kind:
    """Names of what a node saves beside tensors. The sizes of its operands are the shapes of other nodes."""
    names: tuple[str, ...] | None = None
    special: Callable[[Node], Hashable] | None = None
    if issubclass(kind, FunctionCtx):
        names, special = (), seen_by
    elif OPEN.fullmatch(kind.__name__) and kind.__name__ not in STRIDED:
        known = dir(kind)
        saved = [name for name in known if name.startswith("_saved_") and "_raw" + name not in known]
        names = tuple([name for name in saved if not name.endswith(("_sym_sizes", "_sym_strides", "_options"))])
        if "_raw_saved_indices" in kind.__dict__:
            special = _counting
        elif kind.__name__ in ("CatBackward0", "BlockDiagBackward0"):
            special = _several_constants
        elif kind.__name__ == "ConvolutionBackward0":
            special = _frozen_kernel
        elif kind.__name__ == "ToCopyBackward0":
            special = _complex
    return _KINDS.setdefault(kind, (names, special))


def _several_constants(node: Node) -> None:
    """Sizes of what is put together: of one without a gradient they follow from the others. Raises HiddenError."""
    if sum(child is None for child, _ in node.next_functions) > 1:
        raise HiddenError


def _frozen_kernel(node: Node) -> Hashable:
    """The shape of a kernel without a gradient, which no node shows; nor does the result, where a stride skips.

    Raises HiddenError for one that passes through hooks there.
    """
    if node.next_functions[1][0] is not None:
        return None
    if getattr(node._raw_saved_weight, "unpack_hook", None) is None:
        return tuple(node._saved_weight.shape)
    if not node._saved_transposed and max(node._saved_stride, default=1) > 1:
        raise HiddenError
    return None


def _complex(node: Node) -> Hashable:
    """Whether a cast makes complex numbers, or real ones of them: then it is no copy (see `slots`)."""
    below, output = node.next_functions[0]
    return node._input_metadata[0].dtype.is_complex, below._input_metadata[output].dtype.is_complex


def _counting(node: Node) -> Hashable:
    """Which axes have an index, of which shape, and whether it counts up and so does not move by data."""
    raw = node._raw_saved_indices
    if not isinstance(raw, (tuple, list)):
        return None  # of an embedding or a pool: may point anywhere
    if packs_indices(node):  # a proof trusts none of them (see `dependence`)
        return tuple([getattr(saved, "unpack_hook", None) is not None for saved in raw])
    return tuple([None if index is None else (tuple(index.shape), counts_up(index)) for index in node._saved_indices])


def packs_indices(node: Node) -> bool:
    """Whether a node's indices pass through hooks, as by checkpointing: looking at them may cost a forward pass."""
    raw = getattr(node, "_raw_saved_indices", None)
    return isinstance(raw, (tuple, list)) and any(getattr(saved, "unpack_hook", None) is not None for saved in raw)
