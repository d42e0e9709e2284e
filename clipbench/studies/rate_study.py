"""What the studies of rates share: choose constants on some seeds, run the ladder of K on others, record both.

The constants of each method are the best of a grid by the error at the largest K (never by the slope): its mean over
seeds, or a quantile where that is the claim. A piece of work is one method's choice for one batch constant, or one
method's runs at one K (all K at once where a batch is one sample: the runs share their noise).

Rows (step = samples = K): `gradient_norm`, the average over steps of ‖∇F‖, with labels method and part: its mean over
one of `groups` equal parts of the seeds; with method and quantile: over all seeds; `gradient_norm_without` with
method, quantile and part, for a jackknife, where there are seeds enough; `steps` and `samples_per_step` with method.
At the largest K: `grid_error` with method and the three constants; `constant` with method and which; `at_edge` with
method and which: 1 where the best of more than one is the first or last of its list, and a value beyond it could be
better; `at_limit` with method and which: 1 where none could, as a batch has at least one sample.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from itertools import chain, product
from typing import Any

import numpy as np

from clipbench.config.checks import at_least, positive, require
from clipbench.runs.job import Row
from clipbench.studies.base import Study, metric_name, random_generator
from clipbench.studies.descent import Settings
from clipbench.studies.schedules import Constants, Schedule
from clipbench.studies.summary import LEVELS, carried, left_out, slope

NUMBERS_AT_ONCE = 1_000_000  # of noise
Grid = dict[str, dict[str, list[float]]]
Piece = tuple[str, str, float]


class RateStudy(Study):
    """The frame; a subclass says what a schedule is and how a method runs.

    power: p, the order of the bounded moment.  exponents: K = 2^e, ascending.  seeds: for the ladder; a multiple of
    groups.  tuning_seeds: for the constants.  select: "mean", or the level of a quantile.  grid: method → constant →
    values; a constant left out is 1.  slope_from, slope_steps: the final figures are slopes over K ≥ slope_from with at
    least slope_steps steps.  Raises ValueError where one is out of range.
    """

    methods: tuple[str, ...] = ()
    batched: tuple[str, ...] = ()

    def __init__(
        self,
        seed: int,
        power: float,
        exponents: list[int],
        seeds: int,
        tuning_seeds: int,
        groups: int,
        select: float | str,
        grid: Grid,
        slope_from: int,
        slope_steps: int,
    ) -> None:
        super().__init__(seed)
        require(1 < power < 2, "power", "in (1, 2)", power)
        require(exponents == sorted(set(exponents)) and len(exponents) > 0, "exponents", "ascending", exponents)
        at_least("exponents", exponents[0], 1)
        at_least("groups", groups, 2)
        require(seeds >= groups and seeds % groups == 0, "seeds", f"a multiple of groups ({groups})", seeds)
        at_least("tuning_seeds", tuning_seeds, 1)
        mean = select == "mean"
        require(mean or (isinstance(select, float) and 0 < select < 1), "select", "mean or in (0, 1)", select)
        require(set(grid) == set(self.methods), "grid", "given for " + ", ".join(self.methods), sorted(grid))
        for values in grid.values():
            require(set(values) <= set(Constants._fields), "grid", "of batch, rate and threshold", sorted(values))
            for value in chain.from_iterable(values.values()):
                positive("grid", value)
        self.power, self.exponents, self.seeds, self.tuning_seeds = power, exponents, seeds, tuning_seeds
        self.groups, self.select, self.grid = groups, select, grid
        self.slope_from, self.slope_steps = slope_from, slope_steps
        self.scores: list[tuple[str, Constants, float]] = []
        self.pieces = list(self._pieces())
        self.steps = len(self.pieces)

    @abstractmethod
    def schedule(self, method: str, constants: Constants, total: int) -> Schedule:
        """A method's schedule for K = total."""

    @abstractmethod
    def measure(
        self, method: str, samples: int, settings: Settings, seeds: int, draw: np.random.Generator
    ) -> np.ndarray:
        """The average gradient norms (C, S) of settings that share their batch size."""

    def _pieces(self) -> Iterator[Piece]:
        for method in self.methods:
            for batch in self.grid[method].get("batch", [1.0]):
                yield "tune", method, batch
        for method in self.methods:
            for exponent in self.exponents if method in self.batched else [0]:
                yield "run", method, exponent

    def advance(self) -> list[Row]:
        kind, method, what = self.pieces[self.done]
        if kind == "tune":
            return self._tune(method, what)
        totals = [2 ** int(what)] if what else [2**e for e in self.exponents]
        return self._run(method, totals, self.best(method))

    def best(self, method: str) -> Constants:
        """The constants with the smallest score; the first of equals."""
        return min(((c, score) for name, c, score in self.scores if name == method), key=lambda pair: pair[1])[0]

    def values(self, method: str, constant: str) -> list[float]:
        """The grid of one constant."""
        return self.grid[method].get(constant, [1.0])

    def _measure(self, method: str, schedules: list[Schedule], seeds: int, draw: np.random.Generator) -> np.ndarray:
        """The average gradient norms, (len(schedules), S)."""
        order = sorted(range(len(schedules)), key=lambda i: -schedules[i].steps)
        table = [schedules[i] for i in order]
        steps = np.array([s.steps for s in table])
        settings = Settings(steps, np.array([s.rate for s in table]), np.array([s.threshold for s in table]))
        found = np.empty((len(table), seeds))
        with np.errstate(over="ignore", invalid="ignore"):  # a rate that diverges loses the comparison
            found[order] = self.measure(method, table[0].samples, settings, seeds, draw)
        return found

    def _tune(self, method: str, batch: float) -> list[Row]:
        total = 2 ** self.exponents[-1]
        rates, thresholds = self.values(method, "rate"), self.values(method, "threshold")
        tried = [Constants(batch, rate, threshold) for rate, threshold in product(rates, thresholds)]
        schedules = [self.schedule(method, constants, total) for constants in tried]
        draw = random_generator(self.seed, "tuning", self.done)
        norms = np.nan_to_num(self._measure(method, schedules, self.tuning_seeds, draw), nan=np.inf)
        with np.errstate(invalid="ignore"):  # a quantile between infinite values
            scores = norms.mean(axis=1) if self.select == "mean" else np.quantile(norms, float(self.select), axis=1)
        scores = np.nan_to_num(scores, nan=np.inf)
        self.scores += [(method, constants, float(score)) for constants, score in zip(tried, scores, strict=True)]
        return [
            self.row(total, metric_name("grid_error", method=method, **constants._asdict()), score)
            for constants, score in zip(tried, scores, strict=True)
        ]

    def _run(self, method: str, totals: list[int], constants: Constants) -> list[Row]:
        schedules = [self.schedule(method, constants, total) for total in totals]
        found = self._measure(method, schedules, self.seeds, random_generator(self.seed, "noise", self.done))
        rows = []
        for total, schedule, norms in zip(totals, schedules, found, strict=True):
            rows += self._rows(method, total, norms)
            rows.append(self._row(total, "steps", schedule.steps, method=method))
            rows.append(self._row(total, "samples_per_step", schedule.samples, method=method))
        if totals[-1] == 2 ** self.exponents[-1]:
            rows += self._constant_rows(method, totals[-1], constants)
            rows.append(self.row(totals[-1], f"{method}_slope", self._slope(method, rows)))
        return rows

    def _rows(self, method: str, total: int, norms: np.ndarray) -> list[Row]:
        name, levels = "gradient_norm", carried(LEVELS, self.seeds)
        means = norms.reshape(self.groups, -1).mean(axis=1)
        rows = [self._row(total, name, value, method=method, part=i) for i, value in enumerate(means)]
        quantiles: dict[object, float] = dict(zip(levels, np.quantile(norms, levels), strict=True))
        quantiles["mean"] = norms.mean()
        rows += [self._row(total, name, value, method=method, quantile=level) for level, value in quantiles.items()]
        outer = [level for level in (LEVELS[0], LEVELS[-1]) if LEVELS[-1] in levels]
        for i, part in enumerate(left_out(norms, self.groups)):
            for level, value in zip(outer, np.quantile(part, outer), strict=True):
                rows.append(self._row(total, f"{name}_without", value, method=method, quantile=level, part=i))
        return rows

    def _constant_rows(self, method: str, total: int, constants: Constants) -> list[Row]:
        rows = []
        for which, value in constants._asdict().items():
            values = self.values(method, which)
            rows.append(self._row(total, "constant", value, method=method, which=which))
            limit = which == "batch" and method in self.batched and self.schedule(method, constants, total).samples == 1
            edge = len(values) > 1 and value in (min(values), max(values)) and not limit
            rows.append(self._row(total, "at_edge", edge, method=method, which=which))
            rows.append(self._row(total, "at_limit", limit, method=method, which=which))
        return rows

    def _slope(self, method: str, new: list[Row]) -> float:
        """Of the log of the mean error against log K, where K and the number of steps are large enough."""
        wanted = metric_name("gradient_norm", method=method, quantile="mean")
        counted = metric_name("steps", method=method)
        table = [*self.rows, *new]
        steps = {row["step"]: row["value"] for row in table if row["metric"] == counted}
        errors = {row["step"]: row["value"] for row in table if row["metric"] == wanted}
        fitted = [total for total in errors if total >= self.slope_from and steps[total] >= self.slope_steps]
        return slope(np.array(fitted, dtype=float), np.array([errors[total] for total in fitted]))

    def _row(self, total: int, statistic: str, value: float, **labels: object) -> Row:
        return self.row(total, metric_name(statistic, **labels), value, samples=total)

    def progress(self) -> dict[str, Any]:
        return {"scores": [(method, list(constants), score) for method, constants, score in self.scores]}

    def load_progress(self, progress: dict[str, Any]) -> None:
        self.scores = [(method, Constants(*constants), score) for method, constants, score in progress["scores"]]
