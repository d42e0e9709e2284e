"""Optimizers by name: each takes the model and returns an optimizer over its trained parameters.

They know nothing of estimators and clippers, which have written `.grad` before. Weight decay acts after
clipping: SGD and Adam add weight_decay·θ to the gradient, AdamW and Muon subtract lr·weight_decay·θ.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from itertools import chain
from typing import Any, Literal, Protocol, get_args

import torch
from torch import Tensor, nn

from clipbench.config.checks import fraction, non_negative, one_of, positive, require

AdjustLr = Literal["original", "match_rms_adamw"]
HEAD = ("head.*", "*.head.*")  # the output layer of this package's models


class Optimizer(Protocol):
    """What a training loop uses; every torch.optim.Optimizer has it."""

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """Groups with an "lr" that a schedule may write."""
        ...

    def step(self) -> object:
        """One update from `.grad`."""
        ...

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """All that a resumed run needs."""
        ...

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over what `state_dict` returned."""
        ...


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
    _check(lr, weight_decay)
    _check_momentum(momentum, nesterov)
    return torch.optim.SGD(_trained(model), lr=lr, momentum=momentum, nesterov=nesterov, weight_decay=weight_decay)


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
    _check(lr, weight_decay)
    _check_adam(betas, eps)
    return torch.optim.Adam(_trained(model), lr=lr, betas=_pair(betas), eps=eps, weight_decay=weight_decay)


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
    _check(lr, weight_decay)
    _check_adam(betas, eps)
    return torch.optim.AdamW(_trained(model), lr=lr, betas=_pair(betas), eps=eps, weight_decay=weight_decay)


def muon(
    model: nn.Module,
    lr: float,
    momentum: float = 0.95,
    nesterov: bool = True,
    weight_decay: float = 0.1,
    adjust_lr: AdjustLr = "original",
    adam_lr: float | None = None,
    adam_betas: Sequence[float] = (0.9, 0.95),
    adam_eps: float = 1e-8,
    adam_on: Sequence[str] = HEAD,
) -> Optimizer:
    """Muon (K. Jordan et al. 2024, kellerjordan.github.io/posts/muon) on the matrices, Adam on the rest.

    torch.optim.Muon orthogonalises the momentum of each matrix. Filters (out, in, height, width) go as the
    matrix (out, −1). Adam, without weight decay, takes vectors, embeddings and what `adam_on` names.

    adjust_lr: how the rate depends on a matrix's shape (see torch.optim.Muon).  adam_lr: None shares lr.
    adam_on: shell patterns of parameter names; by default the output layer.
    Raises ValueError where a rate is not finite and > 0, momentum or a beta not in [0, 1), weight_decay
    negative, or the model has no matrix left for Muon.
    """
    _check(lr, weight_decay)
    _check_momentum(momentum, nesterov)
    one_of("adjust_lr", adjust_lr, get_args(AdjustLr))
    matrices, others = _by_shape(model, adam_on)
    flat = [(weight, weight.detach().view(len(weight), -1)) for weight in matrices if weight.dim() > 2]
    plain = [weight for weight in matrices if weight.dim() == 2]
    first = torch.optim.Muon(
        [*plain, *(view for _, view in flat)],
        lr=lr,
        momentum=momentum,
        nesterov=nesterov,
        weight_decay=weight_decay,
        adjust_lr_fn=adjust_lr,
    )
    return MatrixOptimizer(first, _adam_on_rest(others, lr, adam_lr, adam_betas, adam_eps), flat)


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
    _check(lr, weight_decay)
    _check_momentum(momentum, nesterov)
    matrices, others = _by_shape(model, adam_on)
    first = torch.optim.SGD(matrices, lr=lr, momentum=momentum, nesterov=nesterov, weight_decay=weight_decay)
    return MatrixOptimizer(first, _adam_on_rest(others, lr, adam_lr, adam_betas, adam_eps), [])


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


def _trained(model: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def _by_shape(model: nn.Module, adam_on: Sequence[str]) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
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


def _adam_on_rest(
    others: Sequence[nn.Parameter], lr: float, adam_lr: float | None, betas: Sequence[float], eps: float
) -> torch.optim.Optimizer | None:
    positive("adam_lr", lr if adam_lr is None else adam_lr)
    _check_adam(betas, eps, prefix="adam_")
    if not others:
        return None
    return torch.optim.Adam(others, lr=lr if adam_lr is None else adam_lr, betas=_pair(betas), eps=eps)


def _check(lr: float, weight_decay: float) -> None:
    positive("lr", lr)
    non_negative("weight_decay", weight_decay)


def _check_momentum(momentum: float, nesterov: bool) -> None:
    fraction("momentum", momentum)
    require(momentum > 0 or not nesterov, "nesterov", "false where momentum is 0", nesterov)


def _check_adam(betas: Sequence[float], eps: float, prefix: str = "") -> None:
    require(len(betas) == 2, f"{prefix}betas", "two numbers in [0, 1)", list(betas))
    require(all(0 <= beta < 1 for beta in betas), f"{prefix}betas", "two numbers in [0, 1)", list(betas))
    positive(f"{prefix}eps", eps)


def _pair(betas: Iterable[float]) -> tuple[float, float]:
    first, second = betas
    return float(first), float(second)
