"""P2.d: how good a method is after few random trials, and whether adaptive thresholds need fewer of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from clipbench.analysis.claims.effects import bonferroni
from clipbench.analysis.claims.source import Missing, Source
from clipbench.analysis.claims.statement import Statement
from clipbench.analysis.claims.training import Arm, capped_losses
from clipbench.analysis.load import Experiment
from clipbench.analysis.stats import Interval
from clipbench.wording import amount

RESAMPLES = 2000

Floats = npt.NDArray[np.float64]


def fewer_trials(
    source: Source, experiment: str, adaptive: Sequence[Any], fixed: Sequence[Any], budgets: Sequence[int], metric: str
) -> list[Statement]:
    """ANY adaptive rule's expected best loss after b random trials is below that of every fixed one, at every b.

    An adaptive rule has to win at all budgets and against all fixed rules; its weakest win is its effect, on a log
    scale. The interval is a percentile bootstrap over the trials of both, at Bonferroni's level.
    """
    runs = source.experiment(experiment)
    level = bonferroni(len(adaptive))
    statements = []
    rivals = [Arm.of(name) for name in fixed]
    tables = {arm.label: scored_trials(runs, arm, metric) for arm in (*map(Arm.of, adaptive), *rivals)}
    for arm in map(Arm.of, adaptive):
        effect = _weakest_win(tables[arm.label], [tables[r.label] for r in rivals], budgets, level)
        names = " and ".join(r.label for r in rivals)
        at = " and ".join(map(str, budgets))
        text = f"expected best {metric.replace('_', ' ')} after {amount(at, 'trial')}, log({arm.label}/{names}) < 0"
        statements.append(Statement(text, effect, "below", unit="log", group="adaptive", seeds=False))
    return statements


def scored_trials(experiment: Experiment, arm: Arm, metric: str) -> Floats:
    """(trials, 2): the loss a trial is chosen by, of its first seed, and the one it is scored by, of its second."""
    table = capped_losses(experiment, arm, metric)
    rows = [[values[seed] for seed in sorted(values)[:2]] for _, values in sorted(table.items()) if len(values) >= 2]
    if len(rows) < 2:
        raise Missing(f"{experiment.name} has no two trials of {arm.label} with two seeds each")
    return np.array(rows, dtype=np.float64)


def expected_best_score(trials: Floats, budget: int) -> float:
    """E[score of the best-chosen of `budget` trials drawn with replacement], exactly, from (trials, 2).

    With trials sorted by what they are chosen by, the i-th of n is the best of b with probability
    ((n−i+1)/n)^b − ((n−i)/n)^b. Dodge et al. (2019), arXiv:1909.03004, with another seed's score in place of its own.
    """
    return float(np.exp(_log_scores(trials[None], [budget])[0, 0]))


def _weakest_win(own: Floats, rivals: Sequence[Floats], budgets: Sequence[int], level: float) -> Interval:
    """Largest log ratio of expected best scores over rivals and budgets, with a bootstrap interval over trials."""
    rng = np.random.default_rng(0)
    drawn = [
        _log_scores(table[rng.integers(len(table), size=(RESAMPLES, len(table)))], budgets) for table in (own, *rivals)
    ]
    draws = np.max([drawn[0] - rival for rival in drawn[1:]], axis=(0, 2))
    given = [_log_scores(table[None], budgets) for table in (own, *rivals)]
    estimate = float(np.max([given[0] - rival for rival in given[1:]]))
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return Interval(estimate, float(low), float(high), len(own))


def _log_scores(tables: Floats, budgets: Sequence[int]) -> Floats:
    """log of `expected_best_score` of many sets of trials (resamples, trials, 2) at every budget."""
    order = np.argsort(tables[:, :, 0], axis=1, kind="stable")
    scores = np.take_along_axis(tables[:, :, 1], order, axis=1)
    n = scores.shape[1]
    left = (n - np.arange(n + 1)) / n
    weights = np.stack([left[:-1] ** b - left[1:] ** b for b in budgets], axis=1)
    return np.asarray(np.log(scores @ weights))


def budget_curve(trials: Mapping[str, Floats], budgets: Sequence[int]) -> dict[str, list[float]]:
    """Expected best score at every budget, by method: the figure beside the claim."""
    return {name: [expected_best_score(table, b) for b in budgets] for name, table in trials.items()}
