"""Trace regression, arXiv 2605.11838: how far clipped gradients lie from ∇F along single-sample SGD.

    X_{k+1} = X_k − η C_τk(g_k)        δ_k = ‖∇F(X_k) − mean of m clipped sample gradients‖_F²,  m fresh draws at X_k

Reported is the mean of δ_0 … δ_k. Only the recurrence goes step by step, for all seeds and rules at once; δ, and its
parts bias² and variance, come afterwards from the stored X_k and τ_k, a block at a time.

Rows (step = number of steps averaged over; labels seed, clip, threshold): `error` the mean of δ, `bias` and
`variance` the means of its exact parts (δ = bias + variance / draws in expectation), and `loss` = F at the last X_k.
Final figures: `error_<clip>_<threshold>`, the mean over seeds of the last `error`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from clipbench.config.checks import at_least, non_negative, positive, require
from clipbench.runs.job import Row
from clipbench.studies.base import Study, metric_name, random_generator, tensors
from clipbench.studies.regression_problem import Errors, draw_problem, estimation_errors, side_by_side
from clipbench.studies.regression_rules import Rules, iterate

CHUNK = 4096  # (seed, step, rule) triples whose errors are formed at once: their arrays stay in the cache


def curve_steps(steps: int, points: int) -> np.ndarray:
    """About `points` numbers of steps from 1 to `steps`, evenly spread on a log scale, without repetition."""
    return np.unique(np.geomspace(1, steps, points).round().astype(int))


class TraceRegression(Study):
    """Spectral, norm and no clipping under constant, EMA and quantile thresholds, on the same samples.

    seeds: how many problems, those of the seeds seed, seed + 1, …  steps: K.  thresholds: the constant τ.  side: n.
    samples: N.  noise: σ.  rate_factor: η L.  draws: m.  coefficient, epsilon: of the EMA, whose τ is 0 at the first
    step.  quantile, window: of the sliding window, linearly interpolated, ∞ at the first step.  points: on the curves.
    block: steps between checkpoints.  Raises ValueError where one is out of range.
    """

    def __init__(
        self,
        seed: int,
        steps: int,
        seeds: int,
        thresholds: list[float],
        side: int,
        samples: int,
        noise: float,
        rate_factor: float,
        draws: int,
        coefficient: float,
        epsilon: float,
        quantile: float,
        window: int,
        points: int,
        block: int,
    ) -> None:
        super().__init__(seed)
        counts = {
            "seeds": seeds,
            "side": side,
            "samples": samples,
            "draws": draws,
            "points": points,
            "block": block,
            "steps": steps,
        }
        for name, number in counts.items():
            at_least(name, number, 1)
        for threshold in thresholds:
            positive("thresholds", threshold)
        require(len(set(thresholds)) == len(thresholds), "thresholds", "without repetition", thresholds)
        non_negative("noise", noise)
        positive("rate_factor", rate_factor)
        self.length, self.draws, self.block = steps, draws, block
        self.seeds = range(seed, seed + seeds)
        self.problem = side_by_side([draw_problem(s, side, samples, noise, rate_factor) for s in self.seeds])
        self.rules = Rules(seeds, thresholds, coefficient, epsilon, quantile, window)
        self.curve = curve_steps(steps, points)
        self.steps = -(-steps // block)
        self.point = np.zeros((seeds, len(self.rules.labels), side * side))
        self.sums = np.zeros((3, seeds, len(self.rules.labels)))

    def draw(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """For steps start … stop − 1: the samples (S, B), and how often each one is among the fresh draws (S, B, N)."""
        samples, block = self.problem.targets.shape[1], stop - start
        chosen = [random_generator(s, "order", start).integers(0, samples, block) for s in self.seeds]
        fresh = [
            random_generator(s, "noise", start).multinomial(self.draws, np.full(samples, 1 / samples), block)
            for s in self.seeds
        ]
        return np.stack(chosen), np.stack(fresh)

    def advance(self) -> list[Row]:
        start = self.done * self.block
        stop = min(start + self.block, self.length)
        chosen, counts = self.draw(start, stop)
        points, taus, self.point = iterate(self.problem, self.rules, self.point, chosen)
        rows: list[Row] = []
        width = max(1, CHUNK // (points.shape[0] * points.shape[2]))
        for first in range(0, stop - start, width):
            part = np.s_[:, first : first + width]
            errors = estimation_errors(self.problem, points[part], taus[part], counts[part], self.rules.spectral)
            rows += self._rows(start + first, errors)
        return rows

    def _rows(self, before: int, errors: Errors) -> list[Row]:
        """Add the errors of the steps after step `before` to the sums; rows where a point of the curve is passed."""
        running = np.stack(errors[:3]).cumsum(axis=2) + self.sums[:, :, None, :]
        self.sums = running[:, :, -1, :]
        rows = []
        for step in self.curve[(self.curve > before) & (self.curve <= before + running.shape[2])]:
            means = running[:, :, step - before - 1] / step
            values = dict(zip(("error", "bias", "variance"), means, strict=True))
            values["loss"] = errors.loss[:, step - before - 1]
            rows += [
                self.row(step, metric_name(name, seed=seed, **self.rules.labels[r]), table[s, r], samples=step)
                for name, table in values.items()
                for s, seed in enumerate(self.seeds)
                for r in range(len(self.rules.labels))
            ]
        if before + running.shape[2] == self.length:
            means = running[0, :, -1].mean(axis=0) / self.length
            rows += [
                self.row(self.length, f"error_{label['clip']}_{label['threshold']}", value)
                for label, value in zip(self.rules.labels, means, strict=True)
            ]
        return rows

    def progress(self) -> dict[str, Any]:
        return tensors({"point": self.point, "sums": self.sums, **self.rules.state()})

    def load_progress(self, progress: dict[str, Any]) -> None:
        state = {name: value.numpy().copy() for name, value in progress.items()}
        self.point, self.sums = state.pop("point"), state.pop("sums")
        self.rules.load_state(state)
