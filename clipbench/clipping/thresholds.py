"""Thresholds: constant, or adapted to what was measured in the past (arXiv 2605.11838).

A threshold is asked with `current` BEFORE the step's value is known, and told it with `update` afterwards; so it can
only use past steps. Before its first value an adaptive threshold is infinite, which clips nothing: the same as the
paper's first-step rules (EMA: τ = σ_max; quantile: no clipping). A value that is not finite is not recorded: one
overflow does not poison the average for ever. State is kept per name, on the device of the values.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from clipbench.clipping.base import check_positive
from clipbench.clipping.rows import Column, NamedRows


class Threshold(ABC):
    """A rule that gives τ for each name. `adaptive` tells whether it wants the measured values at all."""

    adaptive: bool = True

    @abstractmethod
    def current(self, names: Sequence[str], device: torch.device) -> Tensor:
        """τ for the coming step, shape (len(names),), float32 on `device`; from past values only."""

    def update(self, names: Sequence[str], values: Tensor) -> None:
        """Take in the values measured in this step, shape (len(names),), before clipping."""

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
        return torch.full((len(names),), self.value, device=device)


class EmaThreshold(Threshold):
    """Spectral clipping, arXiv 2605.11838, EMA rule: bias-corrected exponential average of past values.

        m_t = c m_{t−1} + (1 − c) (v_t + ε)        τ_{t+1} = m_t / (1 − cᵗ)

    coefficient: c in [0, 1). epsilon: ε ≥ 0; 0 in the network experiments, 1e-8 in the trace regression.
    """

    def __init__(self, coefficient: float = 0.9, epsilon: float = 0.0) -> None:
        if not 0 <= coefficient < 1:
            raise ValueError(f"coefficient must be in [0, 1), got {coefficient}")
        if not 0 <= epsilon < math.inf:
            raise ValueError(f"epsilon must be >= 0 and finite, got {epsilon}")
        self.coefficient = float(coefficient)
        self.epsilon = float(epsilon)
        # Float64: 1 − cᵗ and the average keep their digits over any number of steps, and the tensors are tiny.
        self._rows = NamedRows(mean=Column(torch.float64, 0.0), count=Column(torch.int64, 0))

    def current(self, names: Sequence[str], device: torch.device) -> Tensor:
        rows = self._rows.select(names, device)
        count = rows["count"]
        weight = 1.0 - torch.pow(self.coefficient, count.to(torch.float64))
        average = rows["mean"] / weight.clamp_min(torch.finfo(torch.float64).tiny)
        return torch.where(count > 0, average, math.inf).to(torch.float32)

    def update(self, names: Sequence[str], values: Tensor) -> None:
        rows = self._rows.select(names, values.device)
        finite = torch.isfinite(values)
        mean = rows["mean"]
        moved = torch.lerp(values.to(torch.float64) + self.epsilon, mean, self.coefficient)
        rows["mean"] = torch.where(finite, moved, mean)
        rows["count"] = rows["count"] + finite

    def state_dict(self) -> dict[str, Any]:
        return self._rows.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._rows.load_state_dict(state)


class QuantileThreshold(Threshold):
    """Spectral clipping, arXiv 2605.11838, sliding window: the q-quantile of the last `window` values.

    interpolation: "lower" takes sorted(h)[⌊q (len − 1)⌋], as the paper's network code does; "linear" interpolates
    between that one and the next, as its trace-regression code does. quantile: q in [0, 1]; window: steps, ≥ 1.
    """

    def __init__(
        self, quantile: float = 0.85, window: int = 100, interpolation: Literal["lower", "linear"] = "lower"
    ) -> None:
        if not 0 <= quantile <= 1:
            raise ValueError(f"quantile must be in [0, 1], got {quantile}")
        if window < 1:
            raise ValueError(f"window must be >= 1, got {window}")
        if interpolation not in ("lower", "linear"):
            raise ValueError(f"interpolation must be lower or linear, got {interpolation}")
        self.quantile, self.window, self.interpolation = float(quantile), int(window), interpolation
        # One entry for each length of history: computed in Python, so that no device rounds q (len − 1) otherwise.
        positions = [self.quantile * max(length - 1, 0) for length in range(self.window + 1)]
        self._lower = torch.tensor([math.floor(position) for position in positions])
        self._weight = torch.tensor([position - math.floor(position) for position in positions])
        self._rows = NamedRows(history=Column(torch.float32, math.inf, (self.window,)), count=Column(torch.int64, 0))

    def current(self, names: Sequence[str], device: torch.device) -> Tensor:
        rows = self._rows.select(names, device)
        self._lower, self._weight = self._lower.to(device), self._weight.to(device)
        length = rows["count"].clamp_max(self.window)
        ordered = rows["history"].sort(dim=1).values  # places not filled yet hold +inf: they sort to the end
        lower = self._lower[length]
        value = ordered.gather(1, lower[:, None]).squeeze(1)
        if self.interpolation == "linear":
            upper = torch.minimum(lower + 1, (length - 1).clamp_min(0))
            above = ordered.gather(1, upper[:, None]).squeeze(1)
            value = torch.where(above > value, torch.lerp(value, above, self._weight[length]), value)
        return value

    def update(self, names: Sequence[str], values: Tensor) -> None:
        rows = self._rows.select(names, values.device)
        finite = torch.isfinite(values)
        history, count = rows["history"], rows["count"]
        slot = (count % self.window)[:, None]
        value = torch.where(finite[:, None], values[:, None].to(history.dtype), history.gather(1, slot))
        rows["history"] = history.scatter(1, slot, value)
        rows["count"] = count + finite

    def state_dict(self) -> dict[str, Any]:
        return self._rows.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._rows.load_state_dict(state)
