"""Thresholds of all members at once: τ as (R, groups), a group being a layer or the whole gradient.

A threshold of a type that has no batched form here is asked member by member (`EachThreshold`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from clipbench.clipping.thresholds import ConstantThreshold, EmaThreshold, QuantileThreshold, Threshold


class Thresholds(Protocol):
    """As clipbench.clipping.Threshold, with values (R, groups)."""

    adaptive: bool

    def current(self, groups: Sequence[str], device: torch.device) -> Tensor:
        """τ for the coming step, (R, groups), float32."""
        ...

    def update(self, groups: Sequence[str], values: Tensor) -> None:
        """Take in what was measured, (R, groups)."""
        ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class Constant:
    """τ = value."""

    adaptive = False

    def __init__(self, members: Sequence[ConstantThreshold]) -> None:
        self._values = torch.tensor([member.value for member in members], dtype=torch.float32)[:, None]

    def current(self, groups: Sequence[str], device: torch.device) -> Tensor:
        self._values = self._values.to(device)
        return self._values.expand(-1, len(groups))

    def update(self, groups: Sequence[str], values: Tensor) -> None:
        """Nothing is kept."""

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """There is no state."""


class Ema:
    """EmaThreshold: m ← c m + (1 − c)(v + ε), τ = m / (1 − cᵗ), in float64."""

    adaptive = True

    def __init__(self, members: Sequence[EmaThreshold]) -> None:
        self._coefficient = torch.tensor([member.coefficient for member in members], dtype=torch.float64)[:, None]
        self._epsilon = torch.tensor([member.epsilon for member in members], dtype=torch.float64)[:, None]
        self._mean: Tensor | None = None
        self._count: Tensor | None = None

    def _state(self, groups: Sequence[str], device: torch.device) -> tuple[Tensor, Tensor]:
        if self._mean is None or self._count is None:
            shape = len(self._coefficient), len(groups)
            self._mean = torch.zeros(shape, dtype=torch.float64, device=device)
            self._count = torch.zeros(shape, dtype=torch.int64, device=device)
            self._coefficient, self._epsilon = self._coefficient.to(device), self._epsilon.to(device)
        return self._mean, self._count

    def current(self, groups: Sequence[str], device: torch.device) -> Tensor:
        mean, count = self._state(groups, device)
        weight = 1.0 - torch.pow(self._coefficient, count.to(torch.float64))
        average = mean / weight.clamp_min(torch.finfo(torch.float64).tiny)
        return torch.where(count > 0, average, math.inf).to(torch.float32)

    def update(self, groups: Sequence[str], values: Tensor) -> None:
        mean, count = self._state(groups, values.device)
        finite = torch.isfinite(values)
        moved = torch.lerp(values.to(torch.float64) + self._epsilon, mean, self._coefficient)
        self._mean, self._count = torch.where(finite, moved, mean), count + finite

    def state_dict(self) -> dict[str, Any]:
        return {} if self._mean is None else {"mean": self._mean, "count": self._count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state:
            mean, count = state["mean"], state["count"]
            self._state([""] * mean.shape[1], mean.device)
            self._mean, self._count = mean, count


class Quantile:
    """QuantileThreshold: the q-quantile of the last `window` values, one window and interpolation for all members."""

    adaptive = True

    def __init__(self, members: Sequence[QuantileThreshold]) -> None:
        self._window, self._linear = members[0].window, members[0].interpolation == "linear"
        positions = torch.tensor(
            [[member.quantile * max(length - 1, 0) for length in range(self._window + 1)] for member in members],
            dtype=torch.float64,
        )
        self._lower = positions.floor().to(torch.int64)
        self._weight = (positions - positions.floor()).to(torch.float32)
        self._history: Tensor | None = None
        self._count: Tensor | None = None

    def _state(self, groups: int, device: torch.device) -> tuple[Tensor, Tensor]:
        if self._history is None or self._count is None:
            shape = len(self._lower), groups
            self._history = torch.full((*shape, self._window), math.inf, device=device)
            self._count = torch.zeros(shape, dtype=torch.int64, device=device)
            self._lower, self._weight = self._lower.to(device), self._weight.to(device)
        return self._history, self._count

    def current(self, groups: Sequence[str], device: torch.device) -> Tensor:
        history, count = self._state(len(groups), device)
        length = count.clamp_max(self._window)
        ordered = history.sort(dim=2).values  # places not filled yet hold +inf: they sort to the end
        lower = self._lower.gather(1, length)
        value = ordered.gather(2, lower[..., None]).squeeze(2)
        if not self._linear:
            return value
        upper = torch.minimum(lower + 1, (length - 1).clamp_min(0))
        above = ordered.gather(2, upper[..., None]).squeeze(2)
        return torch.where(above > value, torch.lerp(value, above, self._weight.gather(1, length)), value)

    def update(self, groups: Sequence[str], values: Tensor) -> None:
        history, count = self._state(len(groups), values.device)
        finite = torch.isfinite(values)
        slot = (count % self._window)[..., None]
        value = torch.where(finite[..., None], values[..., None].to(history.dtype), history.gather(2, slot))
        self._history, self._count = history.scatter(2, slot, value), count + finite

    def state_dict(self) -> dict[str, Any]:
        return {} if self._history is None else {"history": self._history, "count": self._count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state:
            history, count = state["history"], state["count"]
            self._state(history.shape[1], history.device)
            self._history, self._count = history, count


class EachThreshold:
    """Members' own thresholds, one after the other."""

    def __init__(self, members: Sequence[Threshold]) -> None:
        self._members = list(members)
        self.adaptive = members[0].adaptive

    def current(self, groups: Sequence[str], device: torch.device) -> Tensor:
        return torch.stack([member.current(groups, device) for member in self._members])

    def update(self, groups: Sequence[str], values: Tensor) -> None:
        for member, own in zip(self._members, values.unbind(), strict=True):
            member.update(groups, own)

    def state_dict(self) -> dict[str, Any]:
        return {"members": [member.state_dict() for member in self._members]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for member, own in zip(self._members, state["members"], strict=True):
            member.load_state_dict(own)


def stacked_thresholds(members: Sequence[Threshold]) -> Thresholds:
    """The members' thresholds as one; the types are exact, since a subclass may have another rule."""
    if all(type(member) is ConstantThreshold for member in members):
        return Constant([member for member in members if isinstance(member, ConstantThreshold)])
    if all(type(member) is EmaThreshold for member in members):
        return Ema([member for member in members if isinstance(member, EmaThreshold)])
    found = [member for member in members if type(member) is QuantileThreshold]
    if len(found) == len(members) and len({(each.window, each.interpolation) for each in found}) == 1:
        return Quantile(found)
    return EachThreshold(members)
