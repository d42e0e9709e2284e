"""Functions of the user's own: what their Python code may do unseen, of which a kept proof must not depend.

A node of torch's own moves entries by what it saves, and shows that; and it is linear in its gradients. The backward
of an `autograd.Function`, or a hook, runs any code: it may read a number from a tensor and roll by it, index by what it
computes, look at a variable, or divide by the largest gradient. Numbers that it reads from tensors make a proof fail,
as do operations that may not be linear; its indices count as moving by data whatever they hold; and variables belong to
what a proof holds for. Hooks are not seen in a graph: what they move may not change from step to step.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import torch
from torch.autograd.function import FunctionCtx
from torch.overrides import TorchFunctionMode

from clipbench.per_sample.spelling import Unprovable
from clipbench.per_sample.surrogates import BY_INDEX

LEAKS = frozenset({"tolist", "numpy", "data_ptr", "untyped_storage", "__array__", "__dlpack__", "__reduce_ex__"})
"""Ways from a tensor's values to Python that no tensor operation shows."""
BETWEEN = ("per_sample/dependence.py", "per_sample/opaque.py", "torch/_compile.py", "_dynamo/eval_frame.py")
"""Files whose frames lie between an operation and the question who called it."""
LINEAR = frozenset({
    "mm", "bmm", "mv", "dot", "vdot", "linear", "matmul", "convolution", "sum", "mean", "cumsum", "trace", "unfold",
    "im2col", "col2im", "avg_pool2d", "avg_pool3d", "_adaptive_avg_pool2d", "upsample_nearest1d", "upsample_nearest2d",
    "upsample_bilinear2d", "_fft_r2c", "_fft_c2r", "_fft_c2c", "reflection_pad1d", "reflection_pad2d",
    "replication_pad1d", "replication_pad2d", "pixel_shuffle", "pixel_unshuffle", "linalg_solve_triangular",
})  # fmt: skip
"""Operations that are linear in each of their tensors."""
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
    """Whether the operation that is looked at was called by Python code, and not by a node of torch's own.

    A node's operations come straight from the engine, whose caller is torch's `_engine_run_backward`, or nobody, in a
    thread of its own.
    """
    frame = sys._getframe(1)
    while frame is not None and frame.f_code.co_filename.endswith(BETWEEN):
        frame = frame.f_back  # type: ignore[assignment]
    return frame is not None and frame.f_code.co_name != "_engine_run_backward"


def linear(name: str, tracked: int) -> bool:
    """Whether an operation is linear in its gradients, of which it has so many: a product of two is not."""
    return name in BY_INDEX or (tracked == 1 and (name in LINEAR or name.endswith("_backward")))


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
