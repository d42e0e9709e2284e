"""The slow path, for parameters that no rule covers: one backward pass for every sample, to those parameters only.

All samples share one graph there, through which a non-finite sample reaches the others (0 · inf = NaN): where one is
lost, the batch is.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from clipbench.per_sample.care import Care, taking
from clipbench.per_sample.factors import across, row_norms
from clipbench.per_sample.pullback import apart


def warn_slow(reasons: Mapping[int, str], model: nn.Module, n: int) -> None:
    """Name the parameters that take the slow path, why (by their ids), and what it costs."""
    listed = ", ".join(
        f"{name} ({reasons[id(param)]})" for name, param in model.named_parameters() if id(param) in reasons
    )
    warnings.warn(
        f"no per-sample rule covers how these parameters are used: {listed}; "
        f"their gradients take {n} backward passes a step, one for "
        "each sample, and all others still one in total. Freeze them, or use a layer that has a rule, to avoid this.",
        stacklevel=4,
    )


def sample_gradients(loss: Tensor, params: Sequence[Tensor]) -> list[Tensor]:
    """The gradients of one loss, zeros where it does not depend on a parameter; keeps the graph."""
    grads = torch.autograd.grad(loss, params, retain_graph=True, allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(params, grads, strict=True)]


def slow_norms(losses: Tensor, params: Sequence[Tensor]) -> Tensor:
    """Norms (n,) of the per-sample gradients of `params`, taken together."""
    with torch.enable_grad():
        parts = losses.unbind()
    norms = []
    with taking(Care.SURE):  # beside n backward passes that costs nothing
        for loss in parts:
            norms.append(across([row_norms(g.reshape(1, -1)) for g in sample_gradients(loss, params)]))
    dtypes = {torch.zeros((), dtype=param.dtype).abs().dtype for param in params}
    return torch.cat(norms).to(torch.float64 if torch.float64 in dtypes else torch.float32)


def slow_weighted(losses: Tensor, params: Sequence[Tensor], gamma: Tensor, keep: Tensor | None) -> list[Tensor]:
    """Σ_k γ_k g_k for each of `params`: one backward pass where all samples are kept (None), else n."""
    if keep is None:
        grads = apart(torch.autograd.grad(losses, params, gamma.to(losses.dtype), allow_unused=True))
        return [torch.zeros_like(p) if g is None else g for p, g in zip(params, grads, strict=True)]
    sums = [torch.zeros_like(p) for p in params]
    with torch.enable_grad():
        parts = losses.unbind()
    for kept, weight, loss in zip(keep.unbind(), gamma.unbind(), parts, strict=True):
        for total, g in zip(sums, sample_gradients(loss, params), strict=True):
            total += torch.where(kept, g, 0.0) * weight.to(g.dtype)
    return sums
