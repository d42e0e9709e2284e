"""Naive float64 twins of the estimators: one sample at a time, plain loops, nothing of the package."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

Loss = Callable[[Tensor, Tensor], Tensor]  # (outputs, targets) of ONE sample -> scalar


def flat(model: nn.Module) -> Tensor:
    """The gradient as one vector, zeros where a parameter has none."""
    parts = [torch.zeros_like(p) if p.grad is None else p.grad for p in model.parameters()]
    return torch.cat([part.flatten() for part in parts]).double()


def sample_gradients(model: nn.Module, loss: Loss, inputs: Tensor, targets: Tensor) -> list[Tensor]:
    """The flat gradient of each sample, from a batch of one in float64."""
    twin = copy.deepcopy(model).double()
    double = inputs.double() if inputs.is_floating_point() else inputs
    double_targets = targets.double() if targets.is_floating_point() else targets
    found = []
    for k in range(len(inputs)):
        twin.zero_grad()
        loss(twin(double[k : k + 1]), double_targets[k : k + 1]).backward()
        found.append(flat(twin).clone())
    return found


def ps_clip(gradients: Sequence[Tensor], alpha: float, beta: float) -> Tensor:
    """(1/n) Σ_k min(1, α k^{1/β}/‖g_k‖) g_k, k = 1 … n."""
    total = torch.zeros_like(gradients[0])
    for k, gradient in enumerate(gradients, start=1):
        threshold = alpha * (k ** (1 / beta) if math.isfinite(beta) else 1.0)
        norm = math.sqrt(float((gradient * gradient).sum()))
        total += gradient * (min(1.0, threshold / norm) if norm > 0 else 1.0)
    return total / len(gradients)


def micro_batch_clip(gradients: Sequence[Tensor], size: int, threshold: float) -> Tensor:
    """(1/M) Σ_m clip(g_m), g_m the mean over micro-batch m of `size` samples."""
    micro = [sum(gradients[i : i + size]) / size for i in range(0, len(gradients), size)]
    clipped = []
    for gradient in micro:
        norm = math.sqrt(float((gradient * gradient).sum()))
        clipped.append(gradient * min(1.0, threshold / norm))
    return sum(clipped) / len(clipped)  # type: ignore[return-value]


def wrong_micro_batch_clip(gradients: Sequence[Tensor], size: int, threshold: float) -> Tensor:
    """The known bug: clip(clip(g_1) + g_2), the accumulated gradient clipped again and again."""
    total = torch.zeros_like(gradients[0])
    count = len(gradients) // size
    for i in range(0, len(gradients), size):
        total = total + sum(gradients[i : i + size]) / size / count
        norm = math.sqrt(float((total * total).sum()))
        total = total * min(1.0, threshold / norm)
    return total


def relative_error(found: Tensor, expected: Tensor) -> float:
    """Largest difference over the largest entry of the whole gradient."""
    return float((found.double() - expected).abs().max() / expected.abs().max())
