"""One rule for all parameters: SGD with momentum, Adam, AdamW, as torch has them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from clipbench.training.optimizers.base import Optimizer, check_adam, check_momentum, check_rate, pair, trained


def sgd(
    model: nn.Module,
    lr: float,
    momentum: float = 0.9,
    nesterov: bool = False,
    weight_decay: float = 0.0,
) -> Optimizer:
    """Stochastic gradient descent, m ← momentum·m + g, θ ← θ − lr·m (torch.optim.SGD, no dampening).

    Raises ValueError where lr is not finite and > 0, momentum not in [0, 1), weight_decay negative, or
    nesterov is asked for without momentum.
    """
    check_rate(lr, weight_decay)
    check_momentum(momentum, nesterov)
    return torch.optim.SGD(trained(model), lr=lr, momentum=momentum, nesterov=nesterov, weight_decay=weight_decay)


def adam(
    model: nn.Module,
    lr: float,
    betas: Sequence[float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
) -> Optimizer:
    """Adam (Kingma, Ba 2015, arXiv 1412.6980, algorithm 1), torch.optim.Adam.

    Raises ValueError where lr or eps is not finite and > 0, a beta not in [0, 1), or weight_decay negative.
    """
    check_rate(lr, weight_decay)
    check_adam(betas, eps)
    return torch.optim.Adam(trained(model), lr=lr, betas=pair(betas), eps=eps, weight_decay=weight_decay)


def adamw(
    model: nn.Module,
    lr: float,
    betas: Sequence[float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.01,
) -> Optimizer:
    """Adam with decoupled weight decay (Loshchilov, Hutter 2019, arXiv 1711.05101, algorithm 2).

    Decays every parameter, vectors too. Raises ValueError as `adam` does.
    """
    check_rate(lr, weight_decay)
    check_adam(betas, eps)
    return torch.optim.AdamW(trained(model), lr=lr, betas=pair(betas), eps=eps, weight_decay=weight_decay)
