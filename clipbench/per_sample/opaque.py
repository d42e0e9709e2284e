"""Functions of the user's own: what their Python code may do unseen, of which a kept proof must not depend.

A node of torch's own moves entries by what it saves, and shows that. An `autograd.Function` runs any code: it may read
a number from a tensor and roll by it, index by what it computes, or look at a variable. Numbers that it reads from
tensors make a proof fail, its indices count as moving by data whatever they hold, and variables belong to what a proof
holds for.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch.autograd.function import FunctionCtx
from torch.overrides import TorchFunctionMode

from clipbench.per_sample.spelling import Unprovable

LEAKS = frozenset({"tolist", "numpy", "data_ptr", "untyped_storage", "__array__", "__dlpack__", "__reduce_ex__"})
"""Ways from a tensor's values to Python that no tensor operation shows."""
PLAIN = (bool, int, float, str, type(None))
_NAMES: dict[type, tuple[Mapping[str, Any], tuple[str, ...], tuple[Any, ...]]] = {}


class NoLeaks(TorchFunctionMode):
    """Refuses such ways in a backward pass. Where gradients are on, a forward is recomputed: its graph is at hand."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if getattr(func, "__name__", "") in LEAKS and not torch.is_grad_enabled():
            raise Unprovable(f"{func.__name__} in a function of the user's own")
        return func(*args, **(kwargs or {}))


def in_own_code() -> bool:
    """Whether the backward pass is inside a function of the user's own."""
    return isinstance(torch._C._current_autograd_node(), FunctionCtx)


def surroundings(kind: type) -> list[tuple[str, Any]]:
    """Plain variables that the backward of a Function's node type can see: global, enclosed, and of its class."""
    if kind not in _NAMES:
        backward = getattr(getattr(kind, "_forward_cls", None), "backward", None)
        code = getattr(backward, "__code__", None)
        cells = tuple(getattr(backward, "__closure__", None) or ())
        _NAMES[kind] = (getattr(backward, "__globals__", {}), () if code is None else code.co_names, cells)
    scope, names, cells = _NAMES[kind]
    found = [(name, scope[name]) for name in names if name in scope]
    found += [(f"cell {place}", cell.cell_contents) for place, cell in enumerate(cells) if _filled(cell)]
    for parent in getattr(kind, "_forward_cls", kind).__mro__:
        if parent is FunctionCtx or parent.__module__.startswith("torch."):
            break
        found += list(vars(parent).items())
    return [(name, value) for name, value in found if _plain(value)]


def _plain(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return all(map(_plain, value))
    if isinstance(value, dict):
        return all(_plain(item) for pair in value.items() for item in pair)
    return isinstance(value, PLAIN)


def _filled(cell: Any) -> bool:
    try:
        return cell.cell_contents is not cell
    except ValueError:
        return False
