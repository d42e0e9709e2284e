"""Whether code of the user's own (functions, hooks) is sure to be linear in the gradients that it is given."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge

from clipbench.per_sample.modes import OnlyFakeModes
from clipbench.per_sample.opaque import NoLeaks, Nonlinear, OnlyLinear


def check_linear(losses: Tensor, edges: Sequence[Any]) -> bool:
    """Raise Nonlinear unless all code of the user's own between losses (n,) and `edges` is sure to be linear.

    Returns whether it is so for any values: it has looked at none.
    """
    with OnlyFakeModes():
        ones = torch.ones_like(losses)
        ones._of_gradients = True  # type: ignore[attr-defined]
        with OnlyLinear() as looking, NoLeaks(moving=False) as leaks:
            torch.autograd.grad(get_gradient_edge(losses), list(edges), ones, retain_graph=True, allow_unused=True)
    return not (looking.read or leaks.read)


def linear_below(outputs: Sequence[GradientEdge], params: Sequence[Tensor]) -> bool:
    """Whether all code of the user's own from `outputs` down to parameters is sure to be linear: hooks, that is."""
    try:
        with OnlyFakeModes():
            ones = []
            for edge in outputs:
                meta = edge.node._input_metadata[edge.output_nr]
                one = torch.ones(tuple(meta.shape), dtype=meta.dtype, device=meta.device)
                one._of_gradients = True  # type: ignore[attr-defined]
                ones.append(one)
            with OnlyLinear(), NoLeaks(moving=False):
                torch.autograd.grad(outputs, list(params), ones, retain_graph=True, allow_unused=True)
    except (Nonlinear, RuntimeError, TypeError, ValueError, AttributeError):  # or cannot be looked at
        return False
    return True
