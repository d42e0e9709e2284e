"""Functions of the user's own: what their Python code may do unseen, of which a kept proof must not depend.

A node of torch's own moves entries by what it saves, and shows that; and it is linear in its gradients. The backward
of an `autograd.Function`, or a hook, runs any code: it may read a number from a tensor and roll by it, index by what it
computes, look at a variable, or divide by the largest gradient. Numbers that it reads from tensors make a proof fail;
its indices count as moving by data whatever they hold; what it can see besides belongs to what a proof holds for (see
module `surroundings`). Where it need not be linear in its gradients, as it compares them or adds something of its own,
what samples make together tells nothing of what each makes alone: that is `Nonlinear`, and no measurement helps.
Code in other languages shows nothing: it is taken to be linear, and measured. Hooks are not seen in a graph: what they
move may not change from step to step.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_flatten

from clipbench.per_sample.pullback import nodes_below
from clipbench.per_sample.spelling import Unprovable
from clipbench.per_sample.surrogates import BY_INDEX, CLAMPS, FACTORIES, READS_VALUES, SHAPE_ONLY

if TYPE_CHECKING:
    from clipbench.per_sample.rules import Use

LEAKS = frozenset({"tolist", "numpy", "data_ptr", "untyped_storage", "__array__", "__dlpack__", "__reduce_ex__",
                   "__repr__"})  # fmt: skip
"""Ways from a tensor's values to Python that no tensor operation shows."""
HANDED_ON = frozenset({"data_ptr", "untyped_storage", "__dlpack__"})
"""Those of them that hand memory to other languages, and decide nothing in this one."""
BETWEEN = ("per_sample/dependence.py", "per_sample/opaque.py", "torch/_compile.py", "_dynamo/eval_frame.py")
"""Files whose frames lie between an operation and the question who called it."""
SUMS = frozenset({"add", "sub", "rsub", "cat", "stack", "copy", "where", "index_put", "_index_put_impl", "scatter",
                  "_unsafe_index_put", "index_add", "index_copy", "scatter_add", "select_scatter",
                  "slice_scatter"})  # fmt: skip
"""Operations that are linear if all that they put together are gradients, or zeros."""
FILLS = frozenset({"fill", "masked_fill", "index_fill"})
"""Those that put a number, their last argument, in place of gradients: linear if it is zero."""
LINEAR = frozenset({
    "mm", "bmm", "mv", "dot", "vdot", "linear", "matmul", "convolution", "sum", "mean", "cumsum", "trace", "unfold",
    "im2col", "col2im", "avg_pool2d", "avg_pool3d", "_adaptive_avg_pool2d", "upsample_nearest1d", "upsample_nearest2d",
    "upsample_bilinear2d", "_fft_r2c", "_fft_c2r", "_fft_c2c", "reflection_pad1d", "reflection_pad2d",
    "replication_pad1d", "replication_pad2d", "pixel_shuffle", "pixel_unshuffle", "linalg_solve_triangular", "mul",
    "neg", "conj", "real", "clone", "_unsafe_view", "_reshape_copy", "flip", "roll", "constant_pad_nd", "tril", "triu",
    "_to_copy", "lift_fresh", "rot90", "repeat", "_conj_physical", "diag_embed", "masked_select", "zero", "detach",
}) | BY_INDEX  # fmt: skip
"""Operations that are linear in each of their tensors."""
BY_FIRST = frozenset({"div", "_softmax_backward_data", "_log_softmax_backward_data"})
"""Those that are in the first one, as are all whose name ends in `_backward`."""
KEEP_ZEROS = frozenset({"abs", "sgn", "sign", "sqrt", "square", "tanh", "relu", "nan_to_num"}) | CLAMPS
"""Functions of single entries that make zero of zero: of one sample's entry they make what they would of it alone."""


class Nonlinear(Unprovable):
    """A function of the user's own need not be linear in its gradients."""


class NoLeaks(TorchFunctionMode):
    """Refuses such ways in a backward pass, and counts how deep in calls of torch's own functions an operation is.

    Not where a forward is recomputed: its graph is at hand. moving: also to values that are no gradients.
    """

    def __init__(self, moving: bool) -> None:
        super().__init__()
        self.moving = moving
        self.depth = 0
        self.read = False  # whether values that are no gradients were

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = getattr(func, "__name__", "")
        if name in LEAKS and not recomputes():
            if name not in HANDED_ON and any(map(of_gradients, args)):
                raise Nonlinear(f"{name} of a gradient in a function of the user's own")
            if self.moving:
                raise Unprovable(f"{name} in a function of the user's own")
            self.read = self.read or name not in HANDED_ON
        self.depth += 1
        try:
            return func(*args, **(kwargs or {}))
        finally:
            self.depth -= 1


class OnlyLinear(TorchDispatchMode):
    """Lets a backward pass run as it is, and raises Nonlinear where code of the user's own need not be linear.

    `read` says whether that code has looked at values that are no gradients: with others it may do another thing.
    """

    def __init__(self) -> None:
        super().__init__()
        self.read = False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        leaves = tree_flatten((args, kwargs))[0]
        gradients = any(map(of_gradients, leaves))
        name = func._overloadpacket.__name__
        if gradients and name in READS_VALUES and in_own_code():
            raise Nonlinear(f"{name} of a gradient in a function of the user's own")
        self.read = self.read or shows_values(func, leaves)
        out = func(*args, **kwargs)
        note_constants(name, leaves, out)
        made = name in FACTORIES and not torch.is_grad_enabled()
        if gradients and in_own_code() and not in_a_row(func, args, kwargs, out):
            raise Nonlinear(f"{name} in a function of the user's own")
        if gradients or made:
            for leaf in tree_flatten(out)[0]:
                if isinstance(leaf, Tensor):
                    leaf._of_gradients = True  # type: ignore[attr-defined]
        return out


def functions_in(losses: Tensor) -> list[Any]:
    """The nodes of functions of the user's own below losses."""
    return [node for node in nodes_below([losses.grad_fn]) if isinstance(node, FunctionCtx)]


def functions_above(losses: Tensor, uses: Iterable[Use]) -> list[tuple[Any, frozenset[int]]]:
    """Those of them that run in a backward pass to some uses, with the outputs from which gradients come.

    Of others such a pass tells nothing.
    """
    if not functions_in(losses):
        return []
    parents: dict[Any, list[Any]] = {}
    read: dict[Any, set[int]] = {losses.grad_fn: {losses.output_nr}}
    for node in nodes_below([losses.grad_fn]):
        for child, output in node.next_functions:
            parents.setdefault(child, []).append(node)
            read.setdefault(child, set()).add(output)
    stack: list[Any] = [use.node for use in uses]
    above: set[Any] = set()
    while stack:
        new = [parent for parent in parents.get(stack.pop(), ()) if parent not in above]
        above.update(new)
        stack += new
    return [(node, frozenset(read[node])) for node in above if isinstance(node, FunctionCtx)]


def of_gradients(leaf: Any) -> bool:
    """Whether something was made of gradients, in a pass that marks what is."""
    return isinstance(leaf, Tensor) and any(
        getattr(leaf, mark, None) for mark in ("_held", "_decides", "_of_gradients")
    )


def in_own_code() -> bool:
    """Whether the operation that is looked at was called by Python code, and not by a node of torch's own.

    A node's operations come straight from the engine, whose caller is torch's `_engine_run_backward`, or nobody, in a
    thread of its own.
    """
    frame = sys._getframe(1)
    while frame is not None and frame.f_code.co_filename.endswith(BETWEEN):
        frame = frame.f_back  # type: ignore[assignment]
    return frame is not None and frame.f_code.co_name != "_engine_run_backward"


def recomputes() -> bool:
    """Whether code runs as a forward that is recomputed, by checkpointing: not what a function does in its backward."""
    frame = sys._getframe(1) if torch.is_grad_enabled() else None
    while frame is not None:
        if frame.f_code.co_filename.endswith("torch/utils/checkpoint.py"):
            return True
        if frame.f_code.co_filename.endswith("torch/autograd/function.py"):
            return False
        frame = frame.f_back  # type: ignore[assignment]
    return torch.is_grad_enabled()


def shows_values(func: Any, leaves: Sequence[Any]) -> bool:
    """Whether an operation in code of the user's own lets Python see values: by a number, or by how many there are."""
    tags = func.tags
    if torch.Tag.data_dependent_output not in tags and torch.Tag.dynamic_output_shape not in tags:
        shown = func._overloadpacket.__name__ in READS_VALUES
    else:
        masks = any(isinstance(leaf, Tensor) and leaf.dtype in (torch.bool, torch.uint8) for leaf in leaves)
        shown = masks or func._overloadpacket.__name__ not in ("index", "_unsafe_index")
    return shown and in_own_code() and not recomputes()


def in_a_row(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any, keeping: bool = False) -> bool:
    """Whether an operation in code of the user's own, done with gradients, is sure to be linear in them.

    keeping: or else one of single entries that keeps zeros. What other libraries' operations do is not known, and
    taken to be linear.
    """
    if func.namespace != "aten":
        return True
    base = func._overloadpacket.__name__.rstrip("_")
    leaves = tree_flatten((args, kwargs))[0]
    tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    if base in SHAPE_ONLY or base in FACTORIES:
        return True
    if any(getattr(leaf, "_decides", False) for leaf in tensors):
        return False
    if not all(_real(leaf) for leaf in tree_flatten(out)[0] if isinstance(leaf, Tensor)):
        return False  # a truth value, a place, a count
    if any(result.alias_info is not None and not result.alias_info.is_write for result in func._schema.returns):
        return True  # a view
    gradients = [of_gradients(tensor) for tensor in tensors]
    if base in SUMS:
        numbers = args[1:2] if base in ("add", "sub", "rsub") else args[3:4] if base == "scatter" else ()
        others = [x for x, mine in zip(tensors, gradients, strict=True) if not mine and _real(x)]
        return all(map(_zero, others)) and all(isinstance(x, Tensor) or x == 0 for x in numbers)
    if base in FILLS:
        return _zero(args[-1])
    if sum(gradients) != 1:
        return keeping and base == "mul"
    if base in LINEAR:
        values = args[2:] if base == "constant_pad_nd" else args[2:3] if base in ("convolution", "linear") else ()
        return all(value is None or (not isinstance(value, Tensor) and value == 0) for value in values)
    if not of_gradients(args[0]):
        return False
    return base in BY_FIRST or base.endswith("_backward") or (keeping and base in KEEP_ZEROS)


def _real(tensor: Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()


def note_constants(name: str, leaves: Sequence[Any], out: Any) -> None:
    """Remember tensors made of Python's numbers in this pass: what they hold belongs to the code, not to the data."""
    if name == "lift_fresh" or not any(isinstance(leaf, Tensor) for leaf in leaves):
        for leaf in tree_flatten(out)[0]:
            if isinstance(leaf, Tensor):
                leaf._constant = True  # type: ignore[attr-defined]


def _zero(value: Any) -> bool:
    """Whether a value is zero, and will be at the next step: not a saved tensor, which may hold zeros for now."""
    if not isinstance(value, Tensor):
        return bool(value == 0)
    if of_gradients(value):
        return True
    if not getattr(value, "_constant", False) or value.device.type != "cpu" or hasattr(value, "fake_mode"):
        return False
    with _disable_current_modes():
        return not bool(value.any())
