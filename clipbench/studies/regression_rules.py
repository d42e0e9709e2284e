"""Thresholds of the trace regression (arXiv 2605.11838) for many seeds at once, and its SGD recurrence.

The package's own thresholds (clipbench.clipping) start otherwise: here the EMA's τ is 0 at the first step and the
quantile is interpolated, as in the paper's code for this experiment. And 100 000 steps of a 3 × 3 problem want few,
small array operations a step.
"""

from __future__ import annotations

import math

import numpy as np

from clipbench.config.checks import at_least, fraction, non_negative, require
from clipbench.studies.regression_problem import Problem, clip_coordinates

ADAPTIVE = ("ema", "quantile")


class Rules:
    """All rules side by side: spectral ones with each constant τ, EMA, quantile and none; then norm ones alike.

    `tau` (S, R) are the thresholds of the coming step; `labels` name the R rules; the first `spectral` are spectral.
    """

    def __init__(
        self, seeds: int, thresholds: list[float], coefficient: float, epsilon: float, quantile: float, window: int
    ) -> None:
        fraction("coefficient", coefficient)
        non_negative("epsilon", epsilon)
        require(0 <= quantile <= 1, "quantile", "in [0, 1]", quantile)
        at_least("window", window, 1)
        self.coefficient, self.epsilon, self.quantile = coefficient, epsilon, quantile
        names: list[object] = [*thresholds, *ADAPTIVE]
        self.labels = [{"clip": "spectral", "threshold": name} for name in names]
        self.labels.append({"clip": "none", "threshold": "none"})
        self.spectral = len(self.labels)
        self.labels += [{"clip": "norm", "threshold": name} for name in names]
        start = [*thresholds, 0.0, math.inf]
        self.tau = np.tile(np.array([*start, math.inf, *start]), (seeds, 1))
        fixed = len(thresholds)
        self.ema = [fixed, self.spectral + fixed]
        self.sliding = [fixed + 1, self.spectral + fixed + 1]
        self.average = np.zeros((seeds, 2))
        self.history = np.zeros((seeds, 2, window))
        self.count = 0

    def update(self, sizes: np.ndarray) -> None:
        """Take in this step's σ_max (spectral rules) or norms (norm rules), (S, R), before clipping."""
        window = self.history.shape[2]
        self.average = self.coefficient * self.average + (1 - self.coefficient) * (sizes[:, self.ema] + self.epsilon)
        self.history[:, :, self.count % window] = sizes[:, self.sliding]
        self.count += 1
        self.tau[:, self.ema] = self.average / (1 - self.coefficient**self.count)
        length = min(self.count, window)
        position = self.quantile * (length - 1)
        lower = math.floor(position)
        upper = min(lower + 1, length - 1)
        ordered = np.partition(self.history[:, :, :length], (lower, upper), axis=2)
        low, high = ordered[:, :, lower], ordered[:, :, upper]
        self.tau[:, self.sliding] = low + (position - lower) * (high - low)

    def state(self) -> dict[str, np.ndarray]:
        """What a resumed recurrence needs."""
        count = np.array(self.count)
        return {"tau": self.tau, "average": self.average, "history": self.history, "count": count}

    def load_state(self, state: dict[str, np.ndarray]) -> None:
        """Go on from `state`."""
        self.tau, self.average, self.history = state["tau"], state["average"], state["history"]
        self.count = int(state["count"])


def iterate(
    problem: Problem, rules: Rules, point: np.ndarray, chosen: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """B steps of clipped single-sample SGD from `point` (S, R, n²) on the samples `chosen` (S, B).

    Returns the points (S, B, R, n²) and thresholds (S, B, R) that each step started from, and the last point.
    """
    seeds, block = chosen.shape
    points = np.empty((seeds, block, *point.shape[1:]))
    taus = np.empty((seeds, block, rules.tau.shape[1]))
    which = np.arange(seeds)
    for k in range(block):
        points[:, k], taus[:, k] = point, rules.tau
        i = chosen[:, k]
        residual = (point @ problem.matrices[which, i][:, :, None])[..., 0] - problem.targets[which, i][:, None]
        eigenvalues = problem.eigenvalues[which, i][:, None]
        coordinates = 2.0 * residual[..., None] * eigenvalues
        clipped = clip_coordinates(coordinates[:, :, None], rules.tau, rules.spectral)[:, :, 0]
        point = point - (problem.rate[:, None, None] * clipped) @ problem.bases[which, i]
        sizes = np.abs(coordinates)
        largest = sizes.max(axis=2)
        largest[:, rules.spectral :] = np.sqrt((sizes[:, rules.spectral :] ** 2).sum(axis=2))
        rules.update(largest)
    return points, taus, point
