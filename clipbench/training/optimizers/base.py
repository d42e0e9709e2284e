"""What every optimizer here is, and the checks and helpers they share."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Protocol

from torch import nn

from clipbench.config.checks import fraction, non_negative, positive, require


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


def trained(model: nn.Module) -> list[nn.Parameter]:
    """The parameters that are not frozen."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def check_rate(lr: float, weight_decay: float) -> None:
    """Raise ValueError unless lr > 0 and weight_decay >= 0, both finite."""
    positive("lr", lr)
    non_negative("weight_decay", weight_decay)


def check_momentum(momentum: float, nesterov: bool) -> None:
    """Raise ValueError unless momentum is in [0, 1), and above 0 for nesterov."""
    fraction("momentum", momentum)
    require(momentum > 0 or not nesterov, "nesterov", "false where momentum is 0", nesterov)


def check_adam(betas: Sequence[float], eps: float, prefix: str = "") -> None:
    """Raise ValueError unless betas are two numbers in [0, 1) and eps > 0; `prefix` stands before their names."""
    require(len(betas) == 2, f"{prefix}betas", "two numbers in [0, 1)", list(betas))
    require(all(0 <= beta < 1 for beta in betas), f"{prefix}betas", "two numbers in [0, 1)", list(betas))
    positive(f"{prefix}eps", eps)


def pair(betas: Iterable[float]) -> tuple[float, float]:
    """The two betas as torch wants them."""
    first, second = betas
    return float(first), float(second)
