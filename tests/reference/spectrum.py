"""Naive twin of the spectrum study: one backward over the whole changed batch in float64, one SVD a layer."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

Loss = Callable[[Tensor, Tensor], Tensor]  # (outputs, targets) → losses (n,)


def gradients(model: nn.Module, loss: Loss, inputs: Tensor, targets: Tensor, weights: Tensor) -> dict[str, Tensor]:
    """The gradients of (1/n) Σ w_k loss_k, by name."""
    twin = copy.deepcopy(model).double()
    double = inputs.double() if inputs.is_floating_point() else inputs
    (loss(twin(double), targets) * weights).mean().backward()
    return {name: p.grad for name, p in twin.named_parameters() if p.grad is not None}


def excess(clean: Tensor, changed: Tensor, control: Tensor) -> float:
    """D: log(s₁′/s₁) less the median of the middle half, less the same of the control."""
    before = torch.linalg.svdvals(clean.flatten(1)).tolist()

    def part(matrix: Tensor) -> float:
        after = torch.linalg.svdvals(matrix.flatten(1)).tolist()
        logs = [math.log(b / a) for a, b in zip(before, after, strict=True)]
        middle = sorted(logs[len(logs) // 4 : 3 * len(logs) // 4])
        half = len(middle) // 2
        return logs[0] - (middle[half] if len(middle) % 2 else (middle[half - 1] + middle[half]) / 2)

    return part(changed) - part(control)
