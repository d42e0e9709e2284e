"""Vector-Jacobian products through a part of an autograd graph, one at a time or a batch of them at once."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

Gradients = Sequence[Tensor | None]
_LOOPED: set[tuple[str, ...]] = set()
"""Outputs (by name) through which torch could not send a batch."""


def products(outputs: Sequence[GradientEdge], inputs: Sequence[GradientEdge], deltas: Gradients) -> Gradients:
    """Jᵀ δ for every input (None where no output depends on it), δ of the shapes of the outputs; keeps the graph."""
    return torch.autograd.grad(outputs, inputs, deltas, retain_graph=True, allow_unused=True)


def batched_products(
    outputs: Sequence[GradientEdge], inputs: Sequence[GradientEdge], deltas: Sequence[Tensor]
) -> Gradients:
    """`products` for b vectors at once: deltas (b, *output shape) give gradients (b, *input shape).

    Where torch cannot send a batch through (an own autograd.Function that reads values), by a loop over b.
    """
    names = tuple(type(output.node).__name__ for output in outputs)
    if names not in _LOOPED:
        try:
            return _at_once(outputs, inputs, deltas)
        except (RuntimeError, ValueError):
            _LOOPED.add(names)
    rows = [products(outputs, inputs, each) for each in zip(*deltas, strict=True)]
    return [None if parts[0] is None else torch.stack(parts) for parts in zip(*rows, strict=True)]


def _at_once(outputs: Sequence[GradientEdge], inputs: Sequence[GradientEdge], deltas: Sequence[Tensor]) -> Gradients:
    """The batch through torch's vmap, which knows no None."""
    reached: list[int] = []

    def call(*each: Tensor) -> tuple[Tensor, ...]:
        found = [(index, g) for index, g in enumerate(products(outputs, inputs, each)) if g is not None]
        reached[:] = [index for index, _ in found]
        return tuple(g for _, g in found)

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="There is a performance drop")
        rows = torch.func.vmap(call)(*deltas)
    gradients: list[Tensor | None] = [None] * len(inputs)
    for index, g in zip(reached, rows, strict=True):
        gradients[index] = g
    return gradients
