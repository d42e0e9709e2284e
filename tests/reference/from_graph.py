"""Per-sample gradients of given losses, each differentiated for itself: holds for any model, routed or mixed too."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def sample_gradients_of(losses: Tensor, model: nn.Module) -> Tensor:
    """(n, parameters) in float64 from losses (n,), zeros where a loss does not depend on a parameter.

    A complex entry stands as two: real and imaginary part.
    """
    params = [p for p in model.parameters() if p.requires_grad]
    rows = []
    for loss in losses:
        grads = torch.autograd.grad(loss, params, retain_graph=True, allow_unused=True)
        rows.append(torch.cat([_real(p, g) for p, g in zip(params, grads, strict=True)]))
    return torch.stack(rows)


def flat_gradient_of(model: nn.Module) -> Tensor:
    """All `.grad` in the same form."""
    return torch.cat([_real(p, p.grad) for p in model.parameters() if p.requires_grad])


def _real(param: Tensor, grad: Tensor | None) -> Tensor:
    grad = torch.zeros_like(param) if grad is None else grad.detach()
    return (torch.view_as_real(grad) if grad.is_complex() else grad).double().flatten()
