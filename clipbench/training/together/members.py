"""The members' weights: every parameter stacked over the members, and each member's own model a view of it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from clipbench.data.base import ByEpoch
from clipbench.training.setup import Setup


class Unbatchable(Exception):
    """What a batch cannot do for its members, in words that end "runs go alone: …"."""


class Members:
    """R setups that differ in numbers only; `weights` are {name: (R, *shape)}, contiguous.

    The parameters of each member's model are made views of the stacked ones, so whatever works on one model (its
    evaluation, a clipper or an optimizer without a batched form) works on its member.
    """

    def __init__(self, setups: Sequence[Setup]) -> None:
        self.setups = list(setups)
        self.first = self.setups[0]
        self.device = self.first.device
        _check(self.first)
        own = [dict(setup.parameters()) for setup in self.setups]
        self.names = list(own[0])
        self.weights: dict[str, Tensor] = {}
        for name in self.names:
            stacked = torch.stack([parameters[name].detach() for parameters in own])
            self.weights[name] = stacked
            for parameters, part in zip(own, stacked.unbind(), strict=True):
                parameters[name].data = part
        self.parameters = own

    def __len__(self) -> int:
        return len(self.setups)

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        return self.weights[self.names[0]].dtype

    def lend(self, gradients: dict[str, Tensor]) -> None:
        """Give every member's parameters their part of `gradients` (R, *shape) as `.grad`, to be read and written."""
        for name, stacked in gradients.items():
            for parameters, part in zip(self.parameters, stacked.unbind(), strict=True):
                parameters[name].grad = part

    def take_back(self) -> None:
        """No parameter has a gradient any more."""
        for parameters in self.parameters:
            for parameter in parameters.values():
                parameter.grad = None


def _check(setup: Setup) -> None:
    """Raise Unbatchable for what has no place in the batch's loop."""
    if setup.update is not None:
        raise Unbatchable("a rule on the optimizer's update belongs to one optimizer")
    if any(group.get("span", 1.0) != 1.0 for group in setup.optimizer.param_groups):
        raise Unbatchable("the optimizer's parts end their schedules apart")
    if isinstance(setup.data, ByEpoch):
        raise Unbatchable("the data change with the epoch, each run's for itself")
    if len({parameter.dtype for _, parameter in setup.parameters()}) > 1:
        raise Unbatchable("the model's parameters have several dtypes")
