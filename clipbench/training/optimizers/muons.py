"""Muon: matrices go along the orthogonal part of their momentum."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from clipbench.config.checks import one_of
from clipbench.training.optimizers.base import Optimizer, check_momentum, check_rate
from clipbench.training.optimizers.matrix import HEAD, MatrixOptimizer, adam_on_rest, by_shape

AdjustLr = Literal["original", "match_rms_adamw"]
Products = Literal["bfloat16", "float32"]
COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # K. Jordan et al. 2024
ITERATIONS = 5
TINY = 1e-7  # a momentum below this norm is not scaled up to 1; torch.optim.Muon's eps


def muon(
    model: nn.Module,
    lr: float,
    momentum: float = 0.95,
    nesterov: bool = True,
    weight_decay: float = 0.1,
    adjust_lr: AdjustLr = "original",
    products: Products = "bfloat16",
    adam_lr: float | None = None,
    adam_betas: Sequence[float] = (0.9, 0.95),
    adam_eps: float = 1e-8,
    adam_on: Sequence[str] = HEAD,
) -> Optimizer:
    """Muon (K. Jordan et al. 2024, kellerjordan.github.io/posts/muon) on the matrices, Adam on the rest.

        m ← lerp(m, g, 1 − momentum)        θ ← (1 − lr·weight_decay) θ − lr·r·NS₅(m)

    With nesterov NS₅ takes lerp(g, m, momentum) in m's place. r is √max(1, rows/columns) for "original", and
    0.2 √max(rows, columns) for "match_rms_adamw". Adam, without weight decay, takes vectors, embeddings and what
    `adam_on` names.

    products: "bfloat16" is torch.optim.Muon, "float32" keeps the five Newton–Schulz steps in the gradient's type, as
    paper 2's code for its small GPT does.  adam_lr: None shares lr.
    adam_on: shell patterns of parameter names; by default the output layer.
    Raises ValueError where a rate is not finite and > 0, momentum or a beta not in [0, 1), weight_decay
    negative, or the model has no matrix left for Muon.

    DEVIATION: filters (out, in, height, width) go as the matrix (out, in·height·width), also in "original"'s r; the
    author's code takes height/width there, which is 1 for square filters.
    """
    check_rate(lr, weight_decay)
    check_momentum(momentum, nesterov)
    one_of("adjust_lr", adjust_lr, get_args(AdjustLr))
    one_of("products", products, get_args(Products))
    matrices, others = by_shape(model, adam_on)
    flat = [(weight, weight.detach().view(len(weight), -1)) for weight in matrices if weight.dim() > 2]
    plain = [weight for weight in matrices if weight.dim() == 2]
    build: Callable[..., torch.optim.Optimizer] = torch.optim.Muon if products == "bfloat16" else WideMuon
    first = build(
        [*plain, *(view for _, view in flat)],
        lr=lr,
        momentum=momentum,
        nesterov=nesterov,
        weight_decay=weight_decay,
        adjust_lr_fn=adjust_lr,
    )
    return MatrixOptimizer(first, adam_on_rest(others, lr, adam_lr, adam_betas, adam_eps), flat)


class WideMuon(torch.optim.Optimizer):
    """Muon for matrices whose Newton–Schulz products have the gradient's own type; the options are torch's."""

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float,
        momentum: float,
        nesterov: bool,
        weight_decay: float,
        adjust_lr_fn: AdjustLr,
    ) -> None:
        options = {"momentum": momentum, "nesterov": nesterov, "adjust_lr_fn": adjust_lr_fn}
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, **options})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # no closure is ever given
        """One update of every matrix that has a gradient."""
        for group in self.param_groups:
            for matrix in group["params"]:
                if matrix.grad is not None:
                    self._update(matrix, matrix.grad, group)

    def _update(self, matrix: Tensor, grad: Tensor, group: dict[str, Any]) -> None:
        state = self.state[matrix]
        average = state.setdefault("momentum_buffer", torch.zeros_like(grad))
        average.lerp_(grad, 1 - group["momentum"])
        direction = orthogonal_part(grad.lerp(average, group["momentum"]) if group["nesterov"] else average)
        rows, columns = matrix.shape
        matched = 0.2 * max(rows, columns) ** 0.5
        factor = matched if group["adjust_lr_fn"] == "match_rms_adamw" else max(1.0, rows / columns) ** 0.5
        matrix.mul_(1 - group["lr"] * group["weight_decay"])
        matrix.add_(direction, alpha=-group["lr"] * factor)


def orthogonal_part(matrix: Tensor) -> Tensor:
    """Five quintic Newton–Schulz steps on matrix/‖matrix‖_F: singular values of about 1, (rows, columns)."""
    a, b, c = COEFFICIENTS
    wide = matrix.shape[0] <= matrix.shape[1]
    part = matrix if wide else matrix.T
    part = part / part.norm().clamp_min(TINY)
    for _ in range(ITERATIONS):
        gram = part @ part.T
        part = torch.addmm(part, torch.addmm(gram, gram, gram, beta=b, alpha=c), part, beta=a)
    return part if wide else part.T
