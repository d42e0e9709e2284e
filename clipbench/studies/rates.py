"""Rates of PS-Clip-SGD and others under heavy-tailed noise, arXiv 2605.02701: average ‖∇F‖ after K samples.

d coordinates, started at 3·(1, …, 1); the noise of a sample is ξ u + z, u = (1, …, 1)/√d, ξ a centred one-sided Pareto
of tail index p + margin, z Gaussian with E‖z‖² = 1. The known optimum is K^{−(p−1)/(3p−2)}.

Rows: see rate_study.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from clipbench.config.checks import at_least, one_of, positive
from clipbench.studies import heavy_tails
from clipbench.studies.descent import PROBLEMS, Settings, clip_norm, descend, descend_per_sample, keep, normalise
from clipbench.studies.rate_study import NUMBERS_AT_ONCE, Grid, RateStudy
from clipbench.studies.schedules import BATCHED, VECTOR_METHODS, Constants, Schedule, vector_schedule

START = 3.0
RULES = {"mini_batch": keep, "normalised": normalise, "sgd": keep, "norm_clip": clip_norm}


def sample_noise(
    seeds: int, samples: int, steps: int, dimension: int, index: float, draw: np.random.Generator
) -> Iterator[np.ndarray]:
    """The samples' noise, (S, n′, d) at a time, batch after batch of n samples."""
    at_once = min(samples, max(1, NUMBERS_AT_ONCE // (seeds * dimension)))
    for _ in range(steps):
        for first in range(0, samples, at_once):
            part = min(at_once, samples - first)
            noise = draw.standard_normal((seeds, part, dimension))
            noise += heavy_tails.pareto((seeds, part, 1), index, draw)
            noise /= math.sqrt(dimension)
            yield noise


def mean_noise(
    seeds: int, samples: int, steps: int, dimension: int, index: float, draw: np.random.Generator
) -> Iterator[np.ndarray]:
    """The noise of means of n samples, (B, S, d) at a time: the mean of n Gaussians is drawn as one."""
    at_once = min(steps, max(1, NUMBERS_AT_ONCE // (seeds * (dimension + samples))))
    for first in range(0, steps, at_once):
        block = min(at_once, steps - first)
        noise = draw.standard_normal((block, seeds, dimension))
        noise /= math.sqrt(samples)
        if block * seeds * samples <= 4 * NUMBERS_AT_ONCE:
            heavy = heavy_tails.pareto((block, seeds, samples), index, draw).mean(axis=2)
        else:  # one batch of many seeds: a seed at a time
            heavy = np.array([[heavy_tails.pareto((samples,), index, draw).mean() for _ in range(seeds)]])
        noise += heavy[..., None]
        noise /= math.sqrt(dimension)
        yield noise


class Rates(RateStudy):
    """One problem and one p; PS-Clip, mini-batch SGD, normalised SGD, SGD and norm clipping.

    problem: valley, quad or well.  margin: tail index = power + margin.  dimension: d.  The others: see RateStudy.
    """

    methods = VECTOR_METHODS
    batched = BATCHED

    def __init__(
        self,
        seed: int,
        problem: str,
        power: float,
        margin: float,
        dimension: int,
        exponents: list[int],
        seeds: int,
        tuning_seeds: int,
        groups: int,
        select: float | str,
        grid: Grid,
        slope_from: int,
        slope_steps: int,
    ) -> None:
        one_of("problem", problem, PROBLEMS)
        positive("margin", margin)
        at_least("dimension", dimension, 1)
        self.problem, self.index, self.dimension = PROBLEMS[problem], power + margin, dimension
        super().__init__(
            seed, power, exponents, seeds, tuning_seeds, groups, select, grid, slope_from, slope_steps
        )  # fmt: skip

    def schedule(self, method: str, constants: Constants, total: int) -> Schedule:
        return vector_schedule(method, constants, total, self.power, self.problem.smoothness)

    def measure(
        self, method: str, samples: int, settings: Settings, seeds: int, draw: np.random.Generator
    ) -> np.ndarray:
        start = np.full(self.dimension, START)
        sizes = (seeds, samples, int(settings.steps[0]), self.dimension, self.index, draw)
        if method == "ps_clip":
            return descend_per_sample(self.problem, start, settings, self.power, samples, sample_noise(*sizes))
        return descend(self.problem, start, settings, RULES[method], mean_noise(*sizes))
