"""Rates of spectral clipping, norm clipping and SGD on matrices, arXiv 2605.11838: average ‖∇F‖_F after K steps.

X has n × n entries, on each of which the problem acts alone; X_0 = 3·(random signs), so that its gradient has full
rank. The noise is ξ u vᵀ, ξ a centred one-sided Pareto of tail index p + margin; u and v are unit vectors, fixed or
drawn at every step. The known optimum is K^{−(p−1)/(3p−2)}.

Rows: see rate_study.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import numpy as np

from clipbench.config.checks import at_least, one_of, positive
from clipbench.studies import heavy_tails
from clipbench.studies.base import random_generator
from clipbench.studies.descent import PROBLEMS, Settings, clip_norm, descend, keep, norms
from clipbench.studies.matrix_clip import clip_spectrum
from clipbench.studies.rate_study import Grid, RateStudy
from clipbench.studies.schedules import MATRIX_METHODS, Constants, Schedule, matrix_schedule

START = 3.0
FACTORS_AT_ONCE = 65_536  # numbers of the noise's left factors
MATRIX_NUMBERS_AT_ONCE = 65_536  # half a MiB
RULES = {"spectral_clip": clip_spectrum, "norm_clip": clip_norm, "sgd": keep}


def unit_vectors(shape: tuple[int, ...], draw: np.random.Generator) -> np.ndarray:
    """Uniform unit vectors along the last dimension."""
    vectors = draw.standard_normal(shape)
    return np.asarray(vectors / norms(vectors)[..., None])


class RatesMatrix(RateStudy):
    """One kind of noise and one p.

    problem: valley, quad or well.  directions: of the noise, fixed or random.  side: n.  margin: tail index = power +
    margin.  The others: see RateStudy.
    """

    methods = MATRIX_METHODS

    def __init__(
        self,
        seed: int,
        problem: str,
        directions: Literal["fixed", "random"],
        power: float,
        margin: float,
        side: int,
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
        one_of("directions", directions, ("fixed", "random"))
        positive("margin", margin)
        at_least("side", side, 1)
        self.problem, self.directions = PROBLEMS[problem], directions
        self.index, self.side = power + margin, side
        super().__init__(
            seed, power, exponents, seeds, tuning_seeds, groups, select, grid, slope_from, slope_steps
        )  # fmt: skip

    def schedule(self, method: str, constants: Constants, total: int) -> Schedule:
        return matrix_schedule(method, constants, total, self.power)

    def start(self) -> np.ndarray:
        """X_0, (n²,); the same for all settings of a run's seed."""
        signs = random_generator(self.seed, "initialisation").integers(0, 2, self.side**2)
        return np.asarray(START * (2.0 * signs - 1.0))

    def noise(self, seeds: int, steps: int, draw: np.random.Generator) -> Iterator[np.ndarray]:
        """ξ u vᵀ, (1, S, n²) a step, in a buffer that the next step overwrites: n² numbers from 2n + 1."""
        fixed = unit_vectors((2, self.side), random_generator(self.seed, "data"))
        at_once = min(steps, max(1, FACTORS_AT_ONCE // (seeds * self.side)))
        product = np.empty((seeds, self.side, self.side))
        for first in range(0, steps, at_once):
            block = min(at_once, steps - first)
            left, right = fixed
            if self.directions == "random":
                left, right = unit_vectors((2, block, seeds, self.side), draw)
            left = heavy_tails.pareto((block, seeds, 1), self.index, draw) * left
            right = np.broadcast_to(right, left.shape)
            for a, b in zip(left, right, strict=True):
                np.multiply(a[:, :, None], b[:, None, :], out=product)
                yield product.reshape(1, seeds, self.side**2)

    def measure(
        self, method: str, samples: int, settings: Settings, seeds: int, draw: np.random.Generator
    ) -> np.ndarray:
        at_once = self.seeds_at_once(settings, seeds)
        found = []
        for first in range(0, seeds, at_once):
            some = min(at_once, seeds - first)
            noise = self.noise(some, int(settings.steps[0]), draw)
            found.append(descend(self.problem, self.start(), settings, RULES[method], noise))
        return np.concatenate(found, axis=1)

    def seeds_at_once(self, settings: Settings, seeds: int) -> int:
        """So many that the matrices of a step stay in a core's cache: several times faster than all seeds at once."""
        running = settings.steps.sum() / settings.steps[0]  # settings, on average over the steps
        return int(min(seeds, max(1, MATRIX_NUMBERS_AT_ONCE // (running * self.side**2))))
