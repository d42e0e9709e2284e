"""The slow path, for parameters that no rule covers: one backward pass for every sample, to those parameters only."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from clipbench.per_sample.factors import row_norms


def warn_slow(params: Mapping[int, Tensor], names: Mapping[int, str], n: int) -> None:
    """Name the parameters that take the slow path, and what it costs."""
    listed = ", ".join(names[key] for key in params)
    warnings.warn(
        f"no per-sample rule covers how {listed} is used: its gradients take {n} backward passes a step (one for "
        "each sample), all other parameters still one in total. Freeze it, or use a layer that has a rule, to avoid this.",
        stacklevel=4,
    )


def sample_gradients(loss: Tensor, params: Sequence[Tensor]) -> list[Tensor]:
    """The gradients of one loss, zeros where it does not depend on a parameter; keeps the graph."""
    grads = torch.autograd.grad(loss, params, retain_graph=True, allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(params, grads, strict=True)]


def slow_squared_norms(losses: Tensor, params: Sequence[Tensor]) -> Tensor:
    """Σ over `params` of squared per-sample gradient norms, (n,)."""
    with torch.enable_grad():
        parts = losses.unbind()
    squares = [sum(row_norms(g[None]) for g in sample_gradients(loss, params)) for loss in parts]
    return torch.cat([torch.as_tensor(square) for square in squares])


def slow_weighted(losses: Tensor, params: Sequence[Tensor], gamma: Tensor, clean: bool) -> list[Tensor]:
    """Σ_k γ_k g_k for each of `params`. One backward pass where all gradients are finite (`clean`), else n."""
    if clean:
        grads = torch.autograd.grad(losses, params, gamma.to(losses.dtype), allow_unused=True)
        return [torch.zeros_like(p) if g is None else g for p, g in zip(params, grads, strict=True)]
    sums = [torch.zeros_like(p) for p in params]
    with torch.enable_grad():
        parts = losses.unbind()
    for weight, loss in zip(gamma.unbind(), parts, strict=True):
        for total, g in zip(sums, sample_gradients(loss, params), strict=True):
            total += torch.where(weight > 0, g, 0.0) * weight.to(g.dtype)
    return sums
