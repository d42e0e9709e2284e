"""The error of gradient estimators, arXiv 2605.02701: ‖ĝ − ∇F‖ against batch size n and failure probability δ.

    ĝ = (1/n) Σ_k min(1, τ_k/‖g_k‖) g_k      g_k = μ + ξ_k u + z_k,  k = 1 … n

ξ heavy-tailed and centred along the unit vector u, z Gaussian with E‖z‖² = 1. Thresholds depend on k alone, so one
draw of the largest batch holds every smaller one as its beginning.

Estimators: mean; ps_clip τ_k = α k^{1/p}; ps_clip_theory, the same with α = (E‖g − μ‖^p)^{1/p}; constant_clip τ_k = τ;
batch_clip, the mean scaled to a norm of τ at most; coordinate_median; geometric_median_of_means. α and both τ are the
best of one grid on draws of their own, by the `select_level`-quantile of the error at n = `select_size`.

Rows (step = samples = n): `error` with labels estimator, quantile; `error` with estimator and quantile=mean;
`error_without` with estimator, quantile and part: the quantile 0.5 or 0.999 without one of `groups` equal parts, for a
jackknife. At n = `select_size`: `grid_error` with estimator and threshold, `chosen` with estimator. `noise_scale` is
(E‖g − μ‖^p)^{1/p}. Final figures: the slopes of ps_clip's quantiles over n ≥ `slope_from`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from clipbench.config.checks import at_least, positive, require
from clipbench.runs.job import Row
from clipbench.studies import heavy_tails
from clipbench.studies.base import Study, metric_name, random_generator, tensors
from clipbench.studies.clipped_sums import Draws, Noise, lengths, weighted_means
from clipbench.studies.medians import coordinate_median, geometric_median, group_means
from clipbench.studies.summary import LEVELS, carried, left_out, slope

AT_ONCE = 400  # batches drawn at once
TUNED = ("ps_clip", "constant_clip", "batch_clip")
CLIPPED = ("mean", "ps_clip", "ps_clip_theory", "constant_clip", "batch_clip")
MEDIANS = ("coordinate_median", "geometric_median_of_means")


class EstimatorError(Study):
    """One noise, tail index, ‖μ‖ and dimension; all estimators and batch sizes.

    noise, index: of ξ.  margin: p = index − margin.  mean_norm: ‖μ‖.  angle: between μ and u, degrees.  dimension: d.
    log_size: the largest batch has 2^log_size samples.  repetitions, median_repetitions: batches, also for the two
    medians; multiples of groups.  tuning_repetitions: batches for the choice of thresholds.  grid: those thresholds.
    select_size, select_level: see above.  mean_groups: of the median of means.  Raises ValueError where one is out of
    range.
    """

    def __init__(
        self,
        seed: int,
        noise: heavy_tails.Tail,
        index: float,
        margin: float,
        mean_norm: float,
        angle: float,
        dimension: int,
        log_size: int,
        repetitions: int,
        median_repetitions: int,
        tuning_repetitions: int,
        groups: int,
        grid: list[float],
        select_size: int,
        select_level: float,
        slope_from: int,
        mean_groups: int,
    ) -> None:
        super().__init__(seed)
        heavy_tails.check(noise, index)
        require(0 < margin < index - 1, "margin", f"in (0, {index - 1:.3g})", margin)
        positive("mean_norm", mean_norm)
        require(dimension >= 4 and dimension % 2 == 0, "dimension", "even and >= 4", dimension)
        at_least("log_size", log_size, 1)
        at_least("groups", groups, 2)
        for name, number in (("repetitions", repetitions), ("median_repetitions", median_repetitions)):
            require(number >= groups and number % groups == 0, name, f"a multiple of groups ({groups})", number)
        at_least("tuning_repetitions", tuning_repetitions, 1)
        for threshold in grid:
            positive("grid", threshold)
        self.sizes = 2 ** np.arange(1, log_size + 1)
        require(select_size in self.sizes, "select_size", f"a power of two up to {self.sizes[-1]}", select_size)
        require(0 < select_level < 1, "select_level", "in (0, 1)", select_level)
        self.power = index - margin
        self.noise = Noise(noise, index, 1 / math.sqrt(dimension), dimension)
        turn = math.radians(angle)
        self.mean = (mean_norm * math.cos(turn), mean_norm * math.sin(turn))
        self.repetitions, self.median_repetitions = repetitions, median_repetitions
        self.tuning_repetitions, self.groups, self.mean_groups = tuning_repetitions, groups, mean_groups
        self.grid, self.select_size, self.select_level = grid, select_size, select_level
        self.slope_from = slope_from
        self.steps = 1 + groups
        self.chosen: dict[str, float] = {}
        self.clipped = np.zeros((len(CLIPPED), len(self.sizes), repetitions))
        self.medians = np.zeros((len(MEDIANS), len(self.sizes), median_repetitions))

    def advance(self) -> list[Row]:
        if self.done == 0:
            return self._tune()
        group = self.done - 1
        size, few = self.repetitions // self.groups, self.median_repetitions // self.groups
        for first in range(0, size, AT_ONCE):
            many = min(AT_ONCE, size - first)
            generator = random_generator(self.seed, "noise", group, first)
            place = np.s_[:, :, group * size + first : group * size + first + many]
            draws = self.noise.draw(int(self.sizes[-1]), many, generator)
            settings = [(name, self.chosen.get(name, math.inf)) for name in CLIPPED]
            self.clipped[place] = self.errors(draws, settings, self.sizes)
        for first in range(0, few, AT_ONCE):
            many = min(AT_ONCE, few - first)
            generator = random_generator(self.seed, "data", group, first)
            place = np.s_[:, :, group * few + first : group * few + first + many]
            self.medians[place] = self._median_errors(many, generator)
        return self._summary() if self.done == self.steps - 1 else []

    def errors(self, draws: Draws, settings: Sequence[tuple[str, float]], sizes: np.ndarray) -> np.ndarray:
        """‖ĝ − μ‖ of each (estimator, threshold) at each batch size, (settings, sizes, R)."""
        norms, found = lengths(draws, self.mean), []
        k = np.arange(1.0, len(norms) + 1)[:, None]
        plain = weighted_means(draws, self.mean, None, sizes)
        for name, value in settings:
            if name == "mean":
                sums = plain
            elif name == "batch_clip":
                sums = plain.clipped(value)
            else:
                thresholds = value * k ** (1 / self.power) if name.startswith("ps_clip") else value
                sums = weighted_means(draws, self.mean, np.minimum(1.0, thresholds / norms), sizes)
            found.append(sums.errors(self.mean))
        return np.stack(found)

    def _median_errors(self, repetitions: int, generator: np.random.Generator) -> np.ndarray:
        """The two medians on whole vectors: u = (1, …, 1)/√d, the plane's second axis (1, −1, 1, …)/√d."""
        d, n = self.noise.dimension, int(self.sizes[-1])
        second = np.where(np.arange(d) % 2 == 0, 1.0, -1.0) / math.sqrt(d)
        mean = self.mean[0] / math.sqrt(d) + self.mean[1] * second
        found = np.empty((len(MEDIANS), len(self.sizes), repetitions))
        means = [np.empty((repetitions, d, min(self.mean_groups, int(size)))) for size in self.sizes]
        for r in range(repetitions):
            heavy = heavy_tails.SAMPLERS[self.noise.kind]((n,), self.noise.tail_index, generator)
            samples = self.noise.std * generator.standard_normal((d, n))
            samples += heavy / math.sqrt(d) + mean[:, None]
            for i, size in enumerate(self.sizes):
                part = samples[:, :size]
                found[0, i, r] = np.linalg.norm(coordinate_median(part) - mean)
                means[i][r] = group_means(part, self.mean_groups)
        for i, points in enumerate(means):
            found[1, i] = np.linalg.norm(geometric_median(points) - mean, axis=1)
        return found

    def _tune(self) -> list[Row]:
        """Choose α and the thresholds; the noise's scale comes from the same draws."""
        settings = [(name, value) for name in TUNED for value in self.grid]
        found, moments = [], []
        for first in range(0, self.tuning_repetitions, AT_ONCE):
            many = min(AT_ONCE, self.tuning_repetitions - first)
            draws = self.noise.draw(self.select_size, many, random_generator(self.seed, "tuning", 0, first))
            moments.append(np.mean(lengths(draws, (0.0, 0.0)) ** self.power))
            found.append(self.errors(draws, settings, np.array([self.select_size]))[:, 0])
        scores = np.quantile(np.concatenate(found, axis=1), self.select_level, axis=1)
        scored = dict(zip(settings, scores.tolist(), strict=True))
        scale = float(np.mean(moments)) ** (1 / self.power)
        self.chosen = {name: min(self.grid, key=lambda v, n=name: scored[n, v]) for name in TUNED}  # type: ignore[misc]
        self.chosen["ps_clip_theory"] = scale
        size = self.select_size
        rows = [self.row(size, metric_name("grid_error", estimator=n, threshold=v), e) for (n, v), e in scored.items()]
        rows += [self.row(size, metric_name("chosen", estimator=n), v) for n, v in self.chosen.items()]
        return [*rows, self.row(size, "noise_scale", scale)]

    def _summary(self) -> list[Row]:
        rows, slopes = [], {}
        for names, table in ((CLIPPED, self.clipped), (MEDIANS, self.medians)):
            levels = carried(LEVELS, table.shape[-1])
            outer = [level for level in levels if level in (LEVELS[0], LEVELS[-1])]
            quantiles = np.quantile(table, levels, axis=-1)
            parts = [np.quantile(part, outer, axis=-1) for part in left_out(table, self.groups)]
            for e, name in enumerate(names):
                for s, size in enumerate(self.sizes.tolist()):
                    shown = dict(zip(levels, quantiles[:, e, s], strict=True)) | {"mean": table[e, s].mean()}
                    rows += [self._row(size, "error", v, estimator=name, quantile=q) for q, v in shown.items()]
                    rows += [
                        self._row(size, "error_without", part[q, e, s], estimator=name, quantile=level, part=i)
                        for i, part in enumerate(parts)
                        for q, level in enumerate(outer)
                    ]
            if "ps_clip" in names:
                late = self.sizes >= self.slope_from
                values = quantiles[:, names.index("ps_clip")][:, late]
                slopes = {lv: slope(self.sizes[late], values[i]) for i, lv in enumerate(levels) if lv in outer}
        rows += [self.row(self.sizes[-1], f"ps_clip_slope_{level}", value) for level, value in slopes.items()]
        return rows

    def _row(self, size: int, statistic: str, value: float, **labels: object) -> Row:
        return self.row(size, metric_name(statistic, **labels), value, samples=size)

    def progress(self) -> dict[str, Any]:
        return tensors({"clipped": self.clipped, "medians": self.medians}) | {"chosen": dict(self.chosen)}

    def load_progress(self, progress: dict[str, Any]) -> None:
        self.clipped, self.medians = progress["clipped"].numpy().copy(), progress["medians"].numpy().copy()
        self.chosen = dict(progress["chosen"])
