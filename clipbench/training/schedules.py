"""Schedules: the factor by which every learning rate is multiplied at a step.

Each has `factor(step, steps)`: `step` is the number of updates already made (0 for the first), `steps` those
of the whole run; the result lies in [0, 1]. A warm-up of w steps multiplies it by min(1, (step + 1)/w), so
the first update is not lost.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Protocol

from clipbench.config.checks import at_least, positive, require


class Schedule(Protocol):
    """A learning-rate factor as a function of the step; see the module's docstring."""

    def factor(self, step: int, steps: int) -> float:
        """The factor at `step` (updates already made) of a run of `steps`."""
        ...


def _warm(step: int, warmup: int) -> float:
    return min(1.0, (step + 1) / warmup) if warmup else 1.0


class Constant:
    """The full rate throughout, after `warmup` steps of linear growth."""

    def __init__(self, warmup: int = 0) -> None:
        at_least("warmup", warmup, 0)
        self.warmup = warmup

    def factor(self, step: int, steps: int) -> float:
        return _warm(step, self.warmup)


class Cosine:
    """Half a cosine from 1 to `final` over the steps after the warm-up (arXiv 1608.03983, eq. 5).

    Loshchilov, Hutter 2017. With t the share of these steps that is over: final + (1 − final)(1 + cos πt)/2.
    Raises ValueError where final is outside [0, 1] or warmup is negative.
    """

    def __init__(self, final: float = 0.0, warmup: int = 0) -> None:
        require(0 <= final <= 1, "final", "in [0, 1]", final)
        at_least("warmup", warmup, 0)
        self.final = final
        self.warmup = warmup

    def factor(self, step: int, steps: int) -> float:
        if step < self.warmup:
            return _warm(step, self.warmup)
        share = min(1.0, (step - self.warmup) / max(1, steps - self.warmup))
        return self.final + (1 - self.final) * (1 + math.cos(math.pi * share)) / 2


class Linear:
    """From the full rate at the first step straight to zero after the last, after `warmup` steps of linear growth."""

    def __init__(self, warmup: int = 0) -> None:
        at_least("warmup", warmup, 0)
        self.warmup = warmup

    def factor(self, step: int, steps: int) -> float:
        return _warm(step, self.warmup) * max(0.0, 1.0 - step / steps)


class Step:
    """The rate is multiplied by `gamma` at each of `milestones`, given as shares of the whole run.

    Raises ValueError where gamma is not finite and > 0, or the milestones are not increasing within (0, 1).
    """

    def __init__(self, milestones: Sequence[float] = (0.5, 0.75), gamma: float = 0.1, warmup: int = 0) -> None:
        inside = all(0 < milestone < 1 for milestone in milestones)
        increasing = all(a < b for a, b in itertools.pairwise(milestones))
        require(inside and increasing, "milestones", "increasing shares in (0, 1)", list(milestones))
        positive("gamma", gamma)
        at_least("warmup", warmup, 0)
        self.milestones = tuple(milestones)
        self.gamma = gamma
        self.warmup = warmup

    def factor(self, step: int, steps: int) -> float:
        passed = sum(step >= milestone * steps for milestone in self.milestones)
        return float(_warm(step, self.warmup) * self.gamma**passed)
