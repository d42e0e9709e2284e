"""Optimizers by name: each takes the model, checks its arguments, and returns a torch optimizer over its parameters.

They know nothing of estimators and clippers, which have written `.grad` before.
"""

from __future__ import annotations

import torch
from torch import nn

from clipbench.checks import fraction, non_negative, positive, require


def sgd(
    model: nn.Module,
    lr: float = 0.05,
    momentum: float = 0.9,
    nesterov: bool = False,
    weight_decay: float = 0.0,
) -> torch.optim.Optimizer:
    """Stochastic gradient descent, m ← momentum·m + g, θ ← θ − lr·m (torch.optim.SGD, no dampening).

    weight_decay: added to the gradient AFTER clipping, as weight_decay·θ.
    Raises ValueError where lr is not finite and > 0, momentum not in [0, 1), or weight_decay negative.
    """
    positive("lr", lr)
    fraction("momentum", momentum)
    non_negative("weight_decay", weight_decay)
    require(momentum > 0 or not nesterov, "nesterov", "false without momentum", nesterov)
    return torch.optim.SGD(
        model.parameters(), lr=lr, momentum=momentum, nesterov=nesterov, weight_decay=weight_decay
    )
