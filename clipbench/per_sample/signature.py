"""What a proof of layouts holds for: the operations between losses and layers, their constants and their shapes."""

from __future__ import annotations

import re
from collections.abc import Hashable, Sequence
from typing import Any

from torch import Tensor
from torch.autograd.function import FunctionCtx

from clipbench.per_sample.slots import Node
from clipbench.per_sample.surrogates import counts_up

OPEN = re.compile(r"\w+Backward\d+|CopyBackwards")
"""Nodes that show their constants. Others, such as a write into part of a tensor (CopySlices), hide them."""
FACTORS = frozenset({"_saved_alpha", "_saved_beta", "_saved_value", "_saved_other", "_saved_p", "_saved_dropout_p",
                     "_saved_scale"})  # fmt: skip
"""Constants that scale."""
_CONSTANTS: dict[type, tuple[str, ...] | None] = {}
"""Names of the constants of a type of node, None where they are hidden."""


class _HiddenError(Exception):
    """A node has constants that cannot be compared."""


def signature(nodes: Sequence[Node]) -> Hashable:
    """Equal for two graphs, as walked from their losses, only if the same operations run backwards on the same shapes.

    Constants are compared by value (an axis, an index, a step, a padding); of a factor only matters whether it is
    zero, as a schedule may change it at every step and it moves nothing. None where a node hides its constants.
    """
    number: dict[Node | None, int] = {node: index for index, node in enumerate(nodes)}
    number[None] = -1
    parts: list[Any] = []
    try:
        for node in nodes:
            kind = type(node)
            parts.append(kind)
            for child, output in node.next_functions:
                parts.append(number[child] if child in number else tuple(child._input_metadata[output].shape))
                parts.append(output)
            for meta in node._input_metadata:
                parts.append(tuple(meta.shape))
                parts.append(meta.dtype)
            names = _CONSTANTS[kind] if kind in _CONSTANTS else _learn(kind)
            if names is None:
                return None
            for name in names:
                value = getattr(node, name)
                if type(value) is float and name in FACTORS:
                    value = value != 0.0
                parts.append(value if type(value) is int else _plain(value))
            _add_special(node, kind, parts)
    except _HiddenError:
        return None
    return tuple(parts)


def _learn(kind: type) -> tuple[str, ...] | None:
    """Names of what a node saves beside tensors. The sizes of its operands are the shapes of other nodes."""
    names: tuple[str, ...] | None = None
    if issubclass(kind, FunctionCtx):
        names = ()
    elif OPEN.fullmatch(kind.__name__):
        known = dir(kind)
        saved = [name for name in known if name.startswith("_saved_") and "_raw" + name not in known]
        names = tuple([name for name in saved if not name.endswith(("_sym_sizes", "_sym_strides", "_options"))])
    _CONSTANTS[kind] = names
    return names


def _add_special(node: Node, kind: type, parts: list[Any]) -> None:
    """What some nodes keep elsewhere: a function's own attributes, indices, the sizes of what is put together."""
    if issubclass(kind, FunctionCtx):
        parts += [_plain(item) for item in sorted(vars(node).items())]
    elif "_raw_saved_indices" in kind.__dict__:
        parts.append(_counting(node))
    elif kind.__name__ in ("CatBackward0", "BlockDiagBackward0") and _several_constants(node):
        raise _HiddenError


def _several_constants(node: Node) -> bool:
    """Whether sizes of what is put together are hidden: one without a gradient follows from the others, two do not."""
    return sum(child is None for child, _ in node.next_functions) > 1


def _counting(node: Node) -> Hashable:
    """Which indices count up, so that they do not move by data (see `surrogates`)."""
    raw = node._raw_saved_indices
    raw = raw if isinstance(raw, (tuple, list)) else (raw,)
    if any(getattr(saved, "unpack_hook", None) is not None for saved in raw):
        return None
    return tuple([counts_up(index) for index in node._saved_indices])


def _plain(value: Any) -> Hashable:
    """A value to compare. Raises _HiddenError."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (tuple, list)):
        return tuple([_plain(item) for item in value])
    if isinstance(value, Tensor):  # like saved tensors, covered by the proof whatever it holds
        return tuple(value.shape), value.dtype
    if type(value).__module__ == "torch":  # a device, a dtype
        return str(value)
    raise _HiddenError
