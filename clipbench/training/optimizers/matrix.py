"""Two rules as one: the first for matrices and filters, Adam for vectors, embeddings and what is named."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from clipbench.config.checks import positive, require
from clipbench.training.optimizers.base import Optimizer, check_adam, check_momentum, check_rate, pair

HEAD = ("head.*", "*.head.*")  # the output layer of this package's models


def matrix_sgd(
    model: nn.Module,
    lr: float,
    momentum: float = 0.9,
    nesterov: bool = False,
    weight_decay: float = 0.1,
    adam_lr: float | None = None,
    adam_betas: Sequence[float] = (0.9, 0.95),
    adam_eps: float = 1e-8,
    adam_on: Sequence[str] = HEAD,
) -> Optimizer:
    """SGD on the matrices and filters, Adam on the rest: paper 2's SGD-momentum for the small GPT.

    Which parameter goes where, the arguments and what raises: as for `muon`.
    """
    check_rate(lr, weight_decay)
    check_momentum(momentum, nesterov)
    matrices, others = by_shape(model, adam_on)
    first = torch.optim.SGD(matrices, lr=lr, momentum=momentum, nesterov=nesterov, weight_decay=weight_decay)
    return MatrixOptimizer(first, adam_on_rest(others, lr, adam_lr, adam_betas, adam_eps), [])


class MatrixOptimizer:
    """Two torch optimizers as one: the first for matrices, the second, if any, for the rest.

    flat: pairs (weight, view) where the first optimizer steps the weight's matrix view, which shares its
    memory.
    """

    def __init__(
        self,
        matrices: torch.optim.Optimizer,
        rest: torch.optim.Optimizer | None,
        flat: Sequence[tuple[nn.Parameter, Tensor]],
    ) -> None:
        self.parts = {"matrices": matrices} | ({} if rest is None else {"rest": rest})
        self._flat = list(flat)

    def follow(self) -> None:
        """Make the views those of the weights again, where a weight's memory has been replaced (`.data`)."""
        for weight, view in self._flat:
            view.data = weight.detach().view(view.shape)

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The groups of both; read anew each time, since torch replaces them in load_state_dict."""
        return list(chain.from_iterable(part.param_groups for part in self.parts.values()))

    def step(self) -> None:
        """Both steps, the views with their weights' gradients."""
        for weight, view in self._flat:
            view.grad = None if weight.grad is None else weight.grad.reshape(view.shape)
        for part in self.parts.values():
            part.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients of all weights; the views never keep theirs."""
        for part in self.parts.values():
            part.zero_grad(set_to_none)
        for weight, view in self._flat:
            view.grad = None
            if set_to_none:
                weight.grad = None
            elif weight.grad is not None:
                weight.grad.zero_()

    def state_dict(self) -> dict[str, Any]:
        """Both states, by name."""
        return {name: part.state_dict() for name, part in self.parts.items()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Raises KeyError where a part is missing."""
        for name, part in self.parts.items():
            part.load_state_dict(state_dict[name])


def by_shape(model: nn.Module, adam_on: Sequence[str]) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """The trained parameters as (matrices and filters, the rest)."""
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    matrices: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            named = any(fnmatchcase(name, pattern) for pattern in adam_on)
            rest = named or parameter.dim() < 2 or id(parameter) in embeddings
            (others if rest else matrices).append(parameter)
    require(bool(matrices), "adam_on", "patterns that leave a matrix of the model", list(adam_on))
    return matrices, others


def adam_on_rest(
    others: Sequence[nn.Parameter], lr: float, adam_lr: float | None, betas: Sequence[float], eps: float
) -> torch.optim.Optimizer | None:
    """Adam without weight decay on `others`, at `lr` unless `adam_lr` is given; None where there are none."""
    positive("adam_lr", lr if adam_lr is None else adam_lr)
    check_adam(betas, eps, prefix="adam_")
    if not others:
        return None
    return torch.optim.Adam(others, lr=lr if adam_lr is None else adam_lr, betas=pair(betas), eps=eps)
