"""What a proof of layouts holds for: the operations between losses and layers, their constants and their shapes."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

from torch import Tensor
from torch.autograd.function import FunctionCtx

from clipbench.per_sample.slots import Node
from clipbench.per_sample.surrogates import counts_up

_CONSTANTS: dict[type, tuple[str, ...]] = {}


def signature(nodes: Sequence[Node]) -> Hashable:
    """Equal for two graphs, as walked from their losses, only if the same operations run backwards on the same shapes.

    Constants are compared by value (an axis, an index, a step, a padding), except that of a real number only matters
    whether it is zero: a learning schedule or dropout's rate moves nothing.
    """
    number = {node: index for index, node in enumerate(nodes)}
    parts: list[Hashable] = []
    for node in nodes:
        children = tuple([(number.get(child, -1 if child is None else -2), out) for child, out in node.next_functions])
        shapes = tuple([(tuple(meta.shape), meta.dtype) for meta in node._input_metadata])
        parts.append((type(node).__name__, children, shapes, constants(node)))
    return tuple(parts)


def constants(node: Node) -> Hashable:
    """An autograd node's constants; its saved tensors are not touched."""
    kind = type(node)
    if isinstance(node, FunctionCtx):
        return tuple([(name, _plain(value)) for name, value in sorted(vars(node).items())])
    names = _CONSTANTS.get(kind)
    if names is None:
        known = dir(kind)
        names = tuple([name for name in known if name.startswith("_saved_") and "_raw" + name not in known])
        _CONSTANTS[kind] = names
    values = tuple([_plain(getattr(node, name)) for name in names])
    if kind.__name__.startswith("Index") and hasattr(node, "_raw_saved_indices"):
        return values, _counting(node)
    return values


def _counting(node: Node) -> Hashable:
    """Which indices count up, so that they do not move by data (see `surrogates`)."""
    raw = node._raw_saved_indices
    raw = raw if isinstance(raw, (tuple, list)) else (raw,)
    if any(getattr(saved, "unpack_hook", None) is not None for saved in raw):
        return None
    return tuple([counts_up(index) for index in node._saved_indices])


def _plain(value: Any) -> Hashable:
    """A value to compare; what cannot be compared is like nothing else."""
    if isinstance(value, float):
        return value != 0.0
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, (tuple, list)):
        return tuple([_plain(item) for item in value])
    if isinstance(value, Tensor):  # like saved tensors, covered by the proof whatever it holds
        return tuple(value.shape), value.dtype
    if type(value).__module__ == "torch":  # a device, a dtype, options
        return str(value)
    return object()
