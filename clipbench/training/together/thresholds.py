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

State = dict[str, Tensor]


class Thresholds(Protocol):
    """As clipbench.clipping.Threshold, with values and τ (R, groups), float64."""

    adaptive: bool
    include_current: bool

    def current(self, groups: Sequence[str], device: torch.device) -> Tensor:
        """τ from past values only."""
        ...

    def at(self, groups: Sequence[str], values: Tensor) -> Tensor:
        """τ for the step in which `values` were measured; nothing is recorded."""
        ...

    def record(self, groups: Sequence[str], values: Tensor, tau: Tensor) -> None:
        """Take in what was measured, or what is left of it at τ where the rule wants that."""
        ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class Constant:
    """τ = value."""

    adaptive = include_current = False

    def __init__(self, members: Sequence[ConstantThreshold]) -> None:
        self._values = torch.tensor([member.value for member in members], dtype=torch.float64)[:, None]

    def current(self, groups: Sequence[str], device: torch.device) -> Tensor:
        self._values = self._values.to(device)
        return self._values.expand(-1, len(groups))

    def at(self, groups: Sequence[str], values: Tensor) -> Tensor:
        return self.current(groups, values.device)

    def record(self, groups: Sequence[str], values: Tensor, tau: Tensor) -> None:
        """Nothing is kept."""

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """There is no state."""


class _History:
    """Rules with a state (R, groups, …): the state after a value, and τ of a state, are functions."""

    adaptive = True

    def __init__(self, members: Sequence[EmaThreshold] | Sequence[QuantileThreshold]) -> None:
        self.include_current, self.feed_clipped = members[0].include_current, members[0].feed_clipped
        self.size = len(members)
        self._kept: State = {}

    def fresh(self, groups: int, device: torch.device) -> State:
        """The state before the first value."""
        raise TypeError(f"{type(self).__name__} must define fresh")

    def after(self, state: State, values: Tensor) -> State:
        """The state once finite `values` are taken in."""
        raise TypeError(f"{type(self).__name__} must define after")

    def level(self, state: State) -> Tensor:
        """τ of a state; ∞ where it holds no value yet."""
        raise TypeError(f"{type(self).__name__} must define level")

    def _state(self, groups: int, device: torch.device) -> State:
        if not self._kept:
            self._kept = self.fresh(groups, device)
        return self._kept

    def current(self, groups: Sequence[str], device: torch.device) -> Tensor:
        return self.level(self._state(len(groups), device))

    def at(self, groups: Sequence[str], values: Tensor) -> Tensor:
        state = self._state(len(groups), values.device)
        return self.level(self.after(state, values) if self.include_current else state)

    def record(self, groups: Sequence[str], values: Tensor, tau: Tensor) -> None:
        if self.feed_clipped:
            values = torch.where(torch.isfinite(values), torch.fmin(values, tau.to(values.dtype)), values)
        self._kept = self.after(self._state(len(groups), values.device), values)

    def state_dict(self) -> dict[str, Any]:
        return dict(self._kept)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._kept = dict(state)


class Ema(_History):
    """EmaThreshold: m ← c m + (1 − c)(v + ε), τ = m / (1 − cᵗ)."""

    def __init__(self, members: Sequence[EmaThreshold]) -> None:
        super().__init__(members)
        self._coefficient = torch.tensor([member.coefficient for member in members], dtype=torch.float64)[:, None]
        self._epsilon = torch.tensor([member.epsilon for member in members], dtype=torch.float64)[:, None]

    def fresh(self, groups: int, device: torch.device) -> State:
        shape = self.size, groups
        return {
            "mean": torch.zeros(shape, dtype=torch.float64, device=device),
            "count": torch.zeros(shape, dtype=torch.int64, device=device),
        }

    def after(self, state: State, values: Tensor) -> State:
        finite, mean = torch.isfinite(values), state["mean"]
        moved = torch.lerp(values.double() + self._epsilon.to(mean.device), mean, self._coefficient.to(mean.device))
        return {"mean": torch.where(finite, moved, mean), "count": state["count"] + finite}

    def level(self, state: State) -> Tensor:
        weight = 1.0 - torch.pow(self._coefficient.to(state["mean"].device), state["count"].double())
        average = state["mean"] / weight.clamp_min(torch.finfo(torch.float64).tiny)
        return torch.where(state["count"] > 0, average, math.inf)


class Quantile(_History):
    """QuantileThreshold: the q-quantile of the last `window` values, one window and interpolation for all members."""

    def __init__(self, members: Sequence[QuantileThreshold]) -> None:
        super().__init__(members)
        self._window, self._linear = members[0].window, members[0].interpolation == "linear"
        lengths = range(self._window + 1)
        places = [[member.quantile * max(length - 1, 0) for length in lengths] for member in members]
        positions = torch.tensor(places, dtype=torch.float64)
        self._lower = positions.floor().to(torch.int64)
        self._weight = positions - positions.floor()

    def fresh(self, groups: int, device: torch.device) -> State:
        shape = self.size, groups
        return {
            "history": torch.full((*shape, self._window), math.inf, dtype=torch.float64, device=device),
            "count": torch.zeros(shape, dtype=torch.int64, device=device),
        }

    def after(self, state: State, values: Tensor) -> State:
        finite, history, count = torch.isfinite(values), state["history"], state["count"]
        slot = (count % self._window)[..., None]
        value = torch.where(finite[..., None], values[..., None].to(history.dtype), history.gather(2, slot))
        return {"history": history.scatter(2, slot, value), "count": count + finite}

    def level(self, state: State) -> Tensor:
        count = state["count"]
        self._lower, self._weight = self._lower.to(count.device), self._weight.to(count.device)
        length = count.clamp_max(self._window)
        ordered = state["history"].sort(dim=2).values  # places not filled yet hold +inf: they sort to the end
        lower = self._lower.gather(1, length)
        value = ordered.gather(2, lower[..., None]).squeeze(2)
        if not self._linear:
            return value
        upper = torch.minimum(lower + 1, (length - 1).clamp_min(0))
        above = ordered.gather(2, upper[..., None]).squeeze(2)
        return torch.where(above > value, torch.lerp(value, above, self._weight.gather(1, length)), value)


class EachThreshold:
    """Members' own thresholds, one after the other."""

    def __init__(self, members: Sequence[Threshold]) -> None:
        self._members = list(members)
        self.adaptive, self.include_current = members[0].adaptive, members[0].include_current

    def current(self, groups: Sequence[str], device: torch.device) -> Tensor:
        return torch.stack([member.current(groups, device).double() for member in self._members])

    def at(self, groups: Sequence[str], values: Tensor) -> Tensor:
        pairs = zip(self._members, values.unbind(), strict=True)
        return torch.stack([member.at(groups, own) for member, own in pairs])

    def record(self, groups: Sequence[str], values: Tensor, tau: Tensor) -> None:
        for member, own, level in zip(self._members, values.unbind(), tau.unbind(), strict=True):
            member.record(groups, own, level)

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
