"""Thresholds: constant, or adapted to what was measured in the past (arXiv 2605.11838).

A threshold is asked for τ before the step's value is recorded, and told it afterwards; so it uses past steps only,
unless it is asked to include the current one. Before its first value an adaptive threshold is infinite, which clips
nothing: the same as the paper's first-step rules (EMA: τ = σ_max; quantile: no clipping). A value that is not finite is
not recorded: one overflow does not poison the average for ever. State is kept per name, on the device of the values.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from clipbench.clipping.base import check_positive
from clipbench.clipping.rows import Column, NamedRows


class Threshold(ABC):
    """A rule that gives τ for each name. `adaptive` tells whether it wants the measured values at all.

    include_current: τ of a step takes in the step's own value (AutoClip does), not past ones alone. feed_clipped: what
    is recorded is min(value, τ) (ZClip and AdaGC do), not the value before clipping. A clipper calls `at` with the
    step's values, clips, and calls `record`; a rule defines `current` and `update`.
    """

    adaptive: bool = True
    include_current: bool = False
    feed_clipped: bool = False

    @abstractmethod
    def current(self, names: Sequence[str], device: torch.device) -> Tensor:
        """τ for the coming step, shape (len(names),), float64 on `device`; from past values only."""

    def update(self, names: Sequence[str], values: Tensor) -> None:
        """Take in the values measured in this step, shape (len(names),), before clipping."""

    def at(self, names: Sequence[str], values: Tensor) -> Tensor:
        """τ for the step in which `values` were measured, float64; nothing is recorded."""
        return self.current(names, values.device).double()

    def record(self, names: Sequence[str], values: Tensor, tau: Tensor) -> None:
        """`update`, with what is left of the values at τ where the rule wants that; what is not finite stays so."""
        if self.feed_clipped:
            values = torch.where(torch.isfinite(values), torch.fmin(values, tau.to(values.dtype)), values)
        self.update(names, values)

    def state_dict(self) -> dict[str, Any]:
        """State by name; {} for a threshold without any."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state`."""


def as_threshold(threshold: float | Threshold, name: str = "threshold") -> Threshold:
    """A float means ConstantThreshold. Raises ValueError, with `name` in front, unless it is > 0."""
    if isinstance(threshold, Threshold):
        return threshold
    return ConstantThreshold(check_positive(name, threshold))


class ConstantThreshold(Threshold):
    """τ = value, for every name and step."""

    adaptive = False

    def __init__(self, value: float) -> None:
        self.value = check_positive("value", value)

    def current(self, names: Sequence[str], device: torch.device) -> Tensor:
        return torch.full((len(names),), self.value, dtype=torch.float64, device=device)


class HistoryThreshold(Threshold):
    """What rules with a state by name share: the state after a value, and τ of a state, are functions."""

    _rows: NamedRows

    @abstractmethod
    def after(self, state: Mapping[str, Tensor], values: Tensor) -> dict[str, Tensor]:
        """The columns once finite `values` are taken in; a name whose value is not finite keeps its own."""

    @abstractmethod
    def level(self, state: Mapping[str, Tensor]) -> Tensor:
        """τ of a state, float64; ∞ where it holds no value yet."""

    def current(self, names: Sequence[str], device: torch.device) -> Tensor:
        return self.level(self._state(names, device))

    def at(self, names: Sequence[str], values: Tensor) -> Tensor:
        state = self._state(names, values.device)
        return self.level(self.after(state, values) if self.include_current else state)

    def update(self, names: Sequence[str], values: Tensor) -> None:
        rows = self._rows.select(names, values.device)
        for column, value in self.after(self._state(names, values.device), values).items():
            rows[column] = value

    def _state(self, names: Sequence[str], device: torch.device) -> dict[str, Tensor]:
        rows = self._rows.select(names, device)
        return {column: rows[column] for column in self._rows.columns}

    def state_dict(self) -> dict[str, Any]:
        return self._rows.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._rows.load_state_dict(state)


class EmaThreshold(HistoryThreshold):
    """Spectral clipping, arXiv 2605.11838, EMA rule: bias-corrected exponential average of past values.

        m_t = c m_{t−1} + (1 − c) (v_t + ε)        τ_{t+1} = m_t / (1 − cᵗ)

    coefficient: c in [0, 1). epsilon: ε ≥ 0; 0 in the network experiments, 1e-8 in the trace regression.
    include_current: τ_t = m_t / (1 − cᵗ) instead; feed_clipped: v_t is min(v_t, τ_t).
    """

    def __init__(
        self,
        coefficient: float = 0.9,
        epsilon: float = 0.0,
        include_current: bool = False,
        feed_clipped: bool = False,
    ) -> None:
        if not 0 <= coefficient < 1:
            raise ValueError(f"coefficient must be in [0, 1), got {coefficient}")
        if not 0 <= epsilon < math.inf:
            raise ValueError(f"epsilon must be >= 0 and finite, got {epsilon}")
        self.coefficient = float(coefficient)
        self.epsilon = float(epsilon)
        self.include_current, self.feed_clipped = bool(include_current), bool(feed_clipped)
        # Float64: 1 − cᵗ and the average keep their digits over any number of steps, and the tensors are tiny.
        self._rows = NamedRows(mean=Column(torch.float64, 0.0), count=Column(torch.int64, 0))

    def after(self, state: Mapping[str, Tensor], values: Tensor) -> dict[str, Tensor]:
        finite, mean = torch.isfinite(values), state["mean"]
        moved = torch.lerp(values.to(torch.float64) + self.epsilon, mean, self.coefficient)
        return {"mean": torch.where(finite, moved, mean), "count": state["count"] + finite}

    def level(self, state: Mapping[str, Tensor]) -> Tensor:
        weight = 1.0 - torch.pow(self.coefficient, state["count"].to(torch.float64))
        average = state["mean"] / weight.clamp_min(torch.finfo(torch.float64).tiny)
        return torch.where(state["count"] > 0, average, math.inf)


class QuantileThreshold(HistoryThreshold):
    """Spectral clipping, arXiv 2605.11838, sliding window: the q-quantile of the last `window` values.

    interpolation: "lower" takes sorted(h)[⌊q (len − 1)⌋], as the paper's network code does; "linear" interpolates
    between that one and the next, as its trace-regression code does. quantile: q in [0, 1]; window: steps, ≥ 1.
    include_current: the step's own value is the last of the window; feed_clipped: min(value, τ) is kept.
    """

    def __init__(
        self,
        quantile: float = 0.85,
        window: int = 100,
        interpolation: Literal["lower", "linear"] = "lower",
        include_current: bool = False,
        feed_clipped: bool = False,
    ) -> None:
        if not 0 <= quantile <= 1:
            raise ValueError(f"quantile must be in [0, 1], got {quantile}")
        if window < 1:
            raise ValueError(f"window must be >= 1, got {window}")
        if interpolation not in ("lower", "linear"):
            raise ValueError(f"interpolation must be lower or linear, got {interpolation}")
        self.quantile, self.window, self.interpolation = float(quantile), int(window), interpolation
        self.include_current, self.feed_clipped = bool(include_current), bool(feed_clipped)
        # One entry for each length of history: computed in Python, so that no device rounds q (len − 1) otherwise.
        positions = [self.quantile * max(length - 1, 0) for length in range(self.window + 1)]
        self._lower = torch.tensor([math.floor(position) for position in positions])
        self._weight = torch.tensor([position - math.floor(position) for position in positions], dtype=torch.float64)
        self._rows = NamedRows(history=Column(torch.float64, math.inf, (self.window,)), count=Column(torch.int64, 0))

    def after(self, state: Mapping[str, Tensor], values: Tensor) -> dict[str, Tensor]:
        finite, history, count = torch.isfinite(values), state["history"], state["count"]
        slot = (count % self.window)[:, None]
        value = torch.where(finite[:, None], values[:, None].to(history.dtype), history.gather(1, slot))
        return {"history": history.scatter(1, slot, value), "count": count + finite}

    def level(self, state: Mapping[str, Tensor]) -> Tensor:
        device = state["count"].device
        self._lower, self._weight = self._lower.to(device), self._weight.to(device)
        length = state["count"].clamp_max(self.window)
        ordered = state["history"].sort(dim=1).values  # places not filled yet hold +inf: they sort to the end
        lower = self._lower[length]
        value = ordered.gather(1, lower[:, None]).squeeze(1)
        if self.interpolation == "linear":
            upper = torch.minimum(lower + 1, (length - 1).clamp_min(0))
            above = ordered.gather(1, upper[:, None]).squeeze(1)
            value = torch.where(above > value, torch.lerp(value, above, self._weight[length]), value)
        return value
