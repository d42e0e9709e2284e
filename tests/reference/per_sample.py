"""Per-sample clipping the slow way: float64, one sample at a time, one backward pass each."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

Loss = Callable[[nn.Module, Tensor], Tensor]
"""(model, inputs (n, …)) → losses (n,)."""


def sample_gradients(model: nn.Module, loss: Loss, inputs: Tensor) -> Tensor:
    """Every sample's gradient over all trainable parameters, (n, parameters), float64: batches of one."""
    twin = copy.deepcopy(model).double()
    inputs = inputs.double() if inputs.is_floating_point() else inputs
    params = [p for p in twin.parameters() if p.requires_grad]
    rows = []
    for k in range(inputs.shape[0]):
        value = loss(twin, inputs[k : k + 1]).sum()
        grads = torch.autograd.grad(value, params, allow_unused=True)
        rows.append(torch.cat([torch.zeros(p.numel()).double() if g is None else g.flatten().cpu()
                               for p, g in zip(params, grads, strict=True)]))  # fmt: skip
    return torch.stack(rows)


def clipped_mean(gradients: Tensor, thresholds: Tensor) -> Tensor:
    """(1/n) Σ_k min(1, τ_k/‖g_k‖) g_k from rows (n, parameters) and thresholds (n,)."""
    total = torch.zeros_like(gradients[0])
    for g, tau in zip(gradients, thresholds, strict=True):
        norm = float((g * g).sum()) ** 0.5
        total += g if norm <= float(tau) else g * (float(tau) / norm)
    return total / len(gradients)


def power_thresholds(n: int, alpha: float, beta: float, offset: int = 0) -> Tensor:
    """τ_k = α k^{1/β} for k = offset + 1 … offset + n."""
    return torch.tensor([alpha * (offset + i + 1) ** (1.0 / beta) for i in range(n)], dtype=torch.float64)
