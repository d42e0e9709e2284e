"""Naive twins of the adaptive thresholds: Python lists of floats, the whole history kept."""

from __future__ import annotations

import math


def step(rule: Ema | Quantile, value: float, include_current: bool, feed_clipped: bool) -> float:
    """One step with the switches, naively: τ of the step; `rule` has recorded what is fed back afterwards."""
    if include_current:
        rule.update(value)
        tau = rule.current()
        if math.isfinite(value):
            rule.history.pop()
    else:
        tau = rule.current()
    rule.update(min(value, tau) if feed_clipped and math.isfinite(value) else value)
    return tau


class Ema:
    """τ_{t+1} = Σ_i (1 − c) c^{t−i} (v_i + ε) / (1 − cᵗ), the sum written out; no threshold before the first value."""

    def __init__(self, coefficient: float, epsilon: float = 0.0) -> None:
        self.coefficient, self.epsilon = coefficient, epsilon
        self.history: list[float] = []

    def current(self) -> float:
        steps = len(self.history)
        if not steps:
            return math.inf
        weights = [(1 - self.coefficient) * self.coefficient ** (steps - 1 - index) for index in range(steps)]
        total = sum(w * (v + self.epsilon) for w, v in zip(weights, self.history, strict=True))
        return total / (1 - self.coefficient**steps)

    def update(self, value: float) -> None:
        if math.isfinite(value):
            self.history.append(value)


class Quantile:
    """The q-quantile of the last `window` values; "lower" is sorted(h)[⌊q (len − 1)⌋]."""

    def __init__(self, quantile: float, window: int, interpolation: str) -> None:
        self.quantile, self.window, self.interpolation = quantile, window, interpolation
        self.history: list[float] = []

    def current(self) -> float:
        recent = sorted(self.history[-self.window :])
        if not recent:
            return math.inf
        position = self.quantile * (len(recent) - 1)
        lower = math.floor(position)
        if self.interpolation == "lower" or lower + 1 >= len(recent):
            return recent[lower]
        return recent[lower] + (position - lower) * (recent[lower + 1] - recent[lower])

    def update(self, value: float) -> None:
        if math.isfinite(value):
            self.history.append(value)
