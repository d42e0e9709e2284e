"""The optimizer of airbench94 (K. Jordan 2024, arXiv 2404.00498): filters, biases and head at rates of their own."""

from __future__ import annotations

import torch
from torch import nn

from clipbench.config.checks import fraction, positive, require
from clipbench.training.optimizers.base import Optimizer, check_momentum, check_rate


def airbench(
    model: nn.Module,
    lr: float,
    momentum: float = 0.6,
    bias_lr: float = 0.053,
    head_lr: float = 0.67,
    rest_momentum: float = 0.85,
    weight_decay: float = 2e-6 * 2000,
    whitening_span: float = 0.15,
) -> Optimizer:
    """Nesterov SGD for airbench94's network, as paper 2 (arXiv 2605.11838) trains it on losses summed over a batch.

    lr, momentum: of the convolutions' filters, which do not decay.  bias_lr, head_lr, rest_momentum: of the norms'
    and the whitening's biases, and of the head.
    weight_decay: of biases and head, coupled, each over its own rate (2e-6 · batch there).
    whitening_span: share of the run over which the whitening's bias trains (3 of 20 epochs); a schedule
    reaches its end there for this group (the group's "span").
    Raises ValueError where a rate is not finite and > 0, a momentum not in [0, 1), weight_decay negative,
    whitening_span not in (0, 1], or the model has no `whitening`, `head` and convolutions.
    """
    check_rate(lr, weight_decay)
    check_momentum(momentum, nesterov=False)
    fraction("rest_momentum", rest_momentum)
    positive("bias_lr", bias_lr)
    positive("head_lr", head_lr)
    require(0 < whitening_span <= 1, "whitening_span", "in (0, 1]", whitening_span)
    parts: dict[str, list[nn.Parameter]] = {"whitening": [], "head": [], "filters": [], "biases": []}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            first = name.split(".")[0]
            kind = first if first in parts else "filters" if parameter.dim() == 4 else "biases"
            parts[kind].append(parameter)
    require(all(parts.values()), "model", "airbench (whitening, groups, head)", type(model).__name__)

    def rest(kind: str, rate: float, span: float = 1.0) -> dict[str, object]:
        return {
            "params": parts[kind], "lr": rate, "momentum": rest_momentum, "weight_decay": weight_decay / rate,
            "nesterov": rest_momentum > 0, "span": span,
        }  # fmt: skip

    return torch.optim.SGD(
        [
            {"params": parts["filters"], "lr": lr, "momentum": momentum, "nesterov": momentum > 0, "span": 1.0},
            rest("whitening", bias_lr, whitening_span),
            rest("biases", bias_lr),
            rest("head", head_lr),
        ]
    )
