"""Which part of which parameter an autograd node reads, and through which re-indexing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

Node = Any
"""An autograd node (`tensor.grad_fn`); torch's own type has no stubs for `_saved_*`."""


class Slot:
    """An operand of an autograd node that is a parameter, or rows `start:stop` of it.

    `transposed` says that the operand is the (2-d) part's transpose, `reshaped` that it has the same entries in
    another shape, which then is `new_shape`. Gradients handed to `add` have the shape of the part.
    """

    __slots__ = ("new_shape", "param", "start", "stop", "transposed")

    def __init__(
        self,
        param: Tensor,
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
        if gradient.shape != self.param.shape or gradient.dtype != self.param.dtype:
            gradient = gradient.reshape(self.part_shape).to(self.param.dtype)
        if self.param.grad is None and self.whole:
            self.param.grad = gradient.contiguous()
            return
        if self.param.grad is None:
            self.param.grad = torch.zeros_like(self.param)
        self.param.grad[slice(*self.span)].add_(gradient) if not self.whole else self.param.grad.add_(gradient)


def resolve(node: Node, output: int, params: Mapping[int, object]) -> Slot | None:
    """The slot that output `output` of `node` stands for, or None where it is not a mere re-indexing of a parameter."""
    first, first_output = node, output
    name = type(node).__name__
    start, stop, transposed, reshaped = 0, -1, False, False
    while name != "AccumulateGrad":
        if name == "TBackward0" or (name == "TransposeBackward0" and _swaps_two(node)):
            transposed = not transposed
            if reshaped:
                return None
        elif name in RESHAPES:
            reshaped = True
            if transposed:
                return None
        elif name == "SplitBackward0" and node._saved_dim == 0 and stop < 0:
            start = output * node._saved_split_size
            stop = start + node._input_metadata[output].shape[0]
        elif name == "SplitWithSizesBackward0" and node._saved_dim == 0 and stop < 0:
            start = sum(node._saved_split_sizes[:output])
            stop = start + node._saved_split_sizes[output]
        elif name != "ToCopyBackward0":
            return None
        node, output = node.next_functions[0]
        name = type(node).__name__
    param = node.variable
    if id(param) not in params:
        return None
    shape = tuple(first._input_metadata[first_output].shape) if reshaped else None
    return Slot(param, start, stop, transposed, shape)


RESHAPES = frozenset({"ViewBackward0", "UnsafeViewBackward0", "UnsqueezeBackward0", "ReshapeAliasBackward0"})
SPLITS = frozenset({"SplitBackward0", "SplitWithSizesBackward0"})
OTHERS = frozenset({"AccumulateGrad", "TBackward0", "TransposeBackward0", "ToCopyBackward0"})
REINDEXINGS = RESHAPES | SPLITS | OTHERS
"""Nodes that may stand between a parameter and the operation that reads it."""


def _swaps_two(node: Node) -> bool:
    """Whether a transposition is that of a matrix."""
    return len(node._input_metadata[0].shape) == 2
