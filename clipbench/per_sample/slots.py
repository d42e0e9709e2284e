"""Which part of which parameter an autograd node reads, and through which re-indexing."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

Node = Any
"""An autograd node (`tensor.grad_fn`); torch's own type has no stubs for `_saved_*`."""


class Derived:
    """A tensor that is computed from parameters: output `output` of `node`, of which rules see only the shape.

    Rules treat it as they treat a parameter; what they find is pulled back to the parameters below (see `pullback`).
    """

    __slots__ = ("device", "dtype", "grad", "node", "output", "shape")

    def __init__(self, node: Node, output: int) -> None:
        metadata = node._input_metadata[output]
        self.node, self.output = node, output
        self.shape = tuple(metadata.shape)
        self.dtype: torch.dtype = metadata.dtype
        self.device: torch.device = metadata.device
        self.grad: Tensor | None = None

    @property
    def edge(self) -> GradientEdge:
        """Where its gradient enters the sub-graph."""
        return GradientEdge(self.node, self.output)

    def dim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    def numel(self) -> int:
        """Number of entries."""
        return math.prod(self.shape)


Root = Tensor | Derived
"""What a node reads parts of: a parameter, or a tensor computed from parameters."""


class Slot:
    """An operand of an autograd node that is a parameter, or rows `start:stop` of it.

    `transposed` says that the operand is the (2-d) part's transpose, `reshaped` that it has the same entries in
    another shape, which then is `new_shape`. Gradients handed to `add` have the shape of the part.
    """

    __slots__ = ("new_shape", "param", "start", "stop", "transposed")

    def __init__(
        self,
        param: Root,
        start: int = 0,
        stop: int = -1,
        transposed: bool = False,
        new_shape: tuple[int, ...] | None = None,
    ) -> None:
        self.param = param
        self.start = start
        self.stop = stop
        self.transposed = transposed
        self.new_shape = new_shape

    @property
    def reshaped(self) -> bool:
        """Whether the operand has another shape than the part (or its transpose)."""
        return self.new_shape is not None

    @property
    def plain(self) -> bool:
        """Whether the operand is the parameter as it is."""
        return self.whole and not self.transposed and self.new_shape is None

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the operand."""
        if self.new_shape is not None:
            return self.new_shape
        return self.part_shape[::-1] if self.transposed else self.part_shape

    @property
    def whole(self) -> bool:
        """Whether the operand is all of the parameter."""
        return self.stop < 0

    @property
    def span(self) -> tuple[int, int]:
        """First row of the part and the row after its last."""
        rows = self.param.shape[0] if self.param.dim() else 1
        return (0, rows) if self.whole else (self.start, self.stop)

    @property
    def key(self) -> tuple[int, tuple[int, int]]:
        """Uses with the same key read the same entries."""
        return id(self.param), self.span

    @property
    def part_shape(self) -> tuple[int, ...]:
        """Shape of the part of the parameter that is read."""
        return tuple(self.param.shape) if self.whole else (self.stop - self.start, *self.param.shape[1:])

    def add(self, gradient: Tensor) -> None:
        """Add `gradient` (of `part_shape`) to the parameter's `.grad`, as autograd would."""
        param = self.param
        if gradient.shape != param.shape or gradient.dtype != param.dtype:
            gradient = gradient.reshape(self.part_shape)
            if gradient.is_complex() and not param.dtype.is_complex:
                gradient = gradient.real
            gradient = gradient.to(param.dtype)
        if param.grad is None and self.whole:
            param.grad = gradient.contiguous()
            return
        if param.grad is None:
            param.grad = torch.zeros(param.shape, dtype=param.dtype, device=param.device)
        param.grad[slice(*self.span)].add_(gradient) if not self.whole else param.grad.add_(gradient)


class _Path:
    """What was met on the way from an operand down to its parameter: reshapes, then a transposition, then rows."""

    __slots__ = ("reshaped", "start", "stop", "transposed")

    def __init__(self) -> None:
        self.start, self.stop, self.transposed, self.reshaped = 0, -1, False, False

    def step(self, node: Node, name: str, output: int) -> bool:
        """Take the node in; False where the way through it has not the form of a slot."""
        if name in SAME:
            return True
        if name == "ToCopyBackward0":  # a gradient that is cast to a real number loses its imaginary part
            below = node.next_functions[0]
            return bool(below[0]._input_metadata[below[1]].dtype.is_complex == node._input_metadata[0].dtype.is_complex)
        if name in CUTS:
            return self._cut(CUTS[name](node, output))
        if self.stop >= 0:
            return False  # rows of a re-indexed parameter are no rows of the parameter
        moved = _moved(node, name) if name in SWAPS else []
        if moved == [1, 0] and len(node._input_metadata[0].shape) == 2:
            self.transposed = not self.transposed
            return not self.reshaped
        if name in RESHAPES or (name in SWAPS and moved == sorted(moved)):
            self.reshaped = True
            return not self.transposed
        return False

    def _cut(self, rows: tuple[int, int, bool] | None) -> bool:
        if rows is None:
            return False
        start, stop, drops_axis = rows
        if stop < 0:  # all of it
            return True
        if self.stop >= 0 or (drops_axis and self.transposed):
            return False
        self.start, self.stop = start, stop
        self.reshaped = self.reshaped or drops_axis
        return True


def resolve(node: Node, output: int, root: Callable[[Node, int], Root]) -> Slot:
    """The slot that output `output` of `node` stands for, as a re-indexing of the deepest tensor it can be one of.

    `root` gives the parameter or derived tensor that an edge stands for.
    """
    if type(node).__name__ == "AccumulateGrad":
        return Slot(root(node, output))
    first, first_output = node, output
    path = _Path()
    before = (0, -1, False, False)
    while (name := type(node).__name__) in REINDEXINGS:
        before = (path.start, path.stop, path.transposed, path.reshaped)
        if not path.step(node, name, output):
            path.start, path.stop, path.transposed, path.reshaped = before
            break
        node, output = node.next_functions[0]
    shape = tuple(first._input_metadata[first_output].shape) if path.reshaped else None
    return Slot(root(node, output), path.start, path.stop, path.transposed, shape)


def _moved(node: Node, name: str) -> list[int]:
    """The axes of what a node transposes, without those of length one, in the order in which they come out."""
    below, output = node.next_functions[0]
    shape = below._input_metadata[output].shape
    axes = list(range(len(shape)))
    if name == "PermuteBackward0":
        axes = [signed(axis, len(shape)) for axis in node._saved_dims]
    elif name == "TransposeBackward0":
        first, second = (signed(axis, len(shape)) for axis in (node._saved_dim0, node._saved_dim1))
        axes[first], axes[second] = axes[second], axes[first]
    else:
        axes.reverse()
    return axes if len(shape) == 2 else [axis for axis in axes if shape[axis] != 1]


Rows = tuple[int, int, bool] | None
"""Rows start:stop of what is cut (stop < 0: all of them), and whether the axis goes; None for another axis."""


def signed(value: int, size: int) -> int:
    """A saved axis or position as one in 0 … size; torch saves negative ones as unsigned integers of 64 bits."""
    return value - (1 << 64) + size if value >= 1 << 63 else value


def _first_axis(node: Node) -> bool:
    return signed(node._saved_dim, len(node._saved_self_sym_sizes)) == 0


def _split(node: Node, output: int) -> Rows:
    start = output * node._saved_split_size
    return (start, start + node._input_metadata[output].shape[0], False) if _first_axis(node) else None


def _split_with_sizes(node: Node, output: int) -> Rows:
    start = sum(node._saved_split_sizes[:output])
    return (start, start + node._saved_split_sizes[output], False) if _first_axis(node) else None


def _slice(node: Node, output: int) -> Rows:
    sizes = node._saved_self_sym_sizes
    axis = signed(node._saved_dim, len(sizes))
    length = node._input_metadata[0].shape[axis]
    if length == sizes[axis] and node._saved_step == 1:
        return 0, -1, False
    if axis != 0 or node._saved_step != 1:
        return None
    start = signed(node._saved_start, sizes[0])
    return start, start + length, False


def _select(node: Node, output: int) -> Rows:
    index = signed(node._saved_index, node._saved_self_sym_sizes[0])
    return (index, index + 1, True) if _first_axis(node) else None


def _unbind(node: Node, output: int) -> Rows:
    return (output, output + 1, True) if node._saved_dim == 0 else None


SAME = frozenset({"CloneBackward0", "AliasBackward0"})
CUTS: Mapping[str, Callable[[Node, int], Rows]] = {
    "SplitBackward0": _split,
    "SplitWithSizesBackward0": _split_with_sizes,
    "SliceBackward0": _slice,
    "SelectBackward0": _select,
    "UnbindBackward0": _unbind,
}
SWAPS = frozenset({"TBackward0", "TransposeBackward0", "PermuteBackward0"})
RESHAPES = frozenset(
    {
        "ViewBackward0",
        "UnsafeViewBackward0",
        "UnsqueezeBackward0",
        "SqueezeBackward0",
        "SqueezeBackward1",
        "SqueezeBackward2",
        "ReshapeAliasBackward0",
    }
)
REINDEXINGS = RESHAPES | SWAPS | SAME | frozenset(CUTS) | frozenset({"ToCopyBackward0"})
"""Nodes that may stand between a parameter and the operation that reads it."""
