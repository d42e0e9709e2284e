"""A rule on the update: what the optimizer has just added to the weights, per unit of learning rate.

Any clipper will do, as it only wants something in `.grad`: after the optimizer's step `.grad` holds (θ_before −
θ_after)/η, the clipper changes it, and the weights are set anew. So spectral clipping after SGD with momentum clamps
the momentum's singular values, whatever the learning rate. Decoupled weight decay (AdamW's, Muon's) is not part of the
update: it is taken out before and applied as it was, as SPECTRA does.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from clipbench.clipping import Clipper, ClipStats


@runtime_checkable
class Observer(Protocol):
    """An update rule that also wants the gradient: `observe` is called before the optimizer's step."""

    def observe(self, named_parameters: Sequence[tuple[str, nn.Parameter]]) -> None:
        """See `.grad`, the gradient that the optimizer is about to use; it is not to be changed."""
        ...


class Groups(Protocol):
    """The part of an optimizer that is needed here."""

    @property
    def param_groups(self) -> list[dict[str, Any]]: ...


class Rate(NamedTuple):
    """Learning rate, and decoupled weight decay per unit of it."""

    lr: float
    decay: float


def _decoupled(group: dict[str, Any]) -> bool:
    """Whether a group's weight decay is decoupled: torch's Adams say so, and Muon's always is."""
    return bool(group.get("decoupled_weight_decay", "adjust_lr_fn" in group))


class Update:
    """Lets `rule` change what `optimizer` does to `named` parameters.

    `before` is called just before the optimizer's step, `after` just after it, while the gradients are still there.
    Where the rule changes nothing, the weights keep the optimizer's own values bit for bit.
    """

    def __init__(self, rule: Clipper, optimizer: Groups, named: Sequence[tuple[str, nn.Parameter]]) -> None:
        self.rule, self.optimizer, self.named = rule, optimizer, list(named)
        self._kept: list[Tensor] = []

    def before(self) -> None:
        """Keep the weights, and show the gradient to a rule that wants it."""
        if isinstance(self.rule, Observer):
            self.rule.observe(self.named)
        self._kept = [parameter.detach().clone() for _, parameter in self._moved()]

    @torch.no_grad()
    def after(self) -> ClipStats:
        """Change the update; `.grad` of every parameter that has one holds the changed update afterwards.

        Raises ValueError where a parameter that was moved is in none of the optimizer's groups.
        """
        moved, rates = self._moved(), self._rates()
        proposed = []
        for (name, parameter), kept in zip(moved, self._kept, strict=True):
            rate = rates.get(_address(parameter))
            if rate is None:
                raise ValueError(f"optimizer must hold every trained parameter, got none of its groups with {name}")
            proposed.append((kept - parameter) / rate.lr - rate.decay * kept)
            parameter.grad = proposed[-1].clone()
        stats = self.rule(moved)
        for (_, parameter), kept, update in zip(moved, self._kept, proposed, strict=True):
            assert parameter.grad is not None  # it was set above
            rate = rates[_address(parameter)]
            changed = kept - rate.lr * (parameter.grad + rate.decay * kept)
            parameter.copy_(torch.where(parameter.grad == update, parameter, changed))
        self._kept = []
        return stats

    def _moved(self) -> list[tuple[str, nn.Parameter]]:
        return [(name, parameter) for name, parameter in self.named if parameter.grad is not None]

    def _rates(self) -> dict[int, Rate]:
        """Rate by the memory that a parameter (or an optimizer's view of it) occupies."""
        return {
            _address(p): Rate(group["lr"], group.get("weight_decay", 0.0) if _decoupled(group) else 0.0)
            for group in self.optimizer.param_groups
            for p in group["params"]
        }


def _address(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)  # an address, for fake tensors too
