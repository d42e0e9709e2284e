"""Statistics over tasks, against plain loops and by what they must do on cases with known answers."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats as scipy_stats

from clipbench.analysis.aggregate import holm, improvement, paired_p, pooled_interquartile_mean, profile

GROUPS = [np.array([1.0, 2.0, 3.0, 50.0]), np.array([0.5, 2.5, 2.0, 4.0])]


def test_the_interquartile_mean_is_of_all_runs_together() -> None:
    assert pooled_interquartile_mean(GROUPS).estimate == pytest.approx(np.mean([2.0, 2.0, 2.5, 3.0]))
    assert pooled_interquartile_mean(GROUPS).n == 8


def test_the_seed_fixes_the_resampling() -> None:
    generator = np.random.default_rng(0)
    pairs = [(generator.normal(size=9), generator.normal(size=8)) for _ in range(2)]
    groups = [own for own, _ in pairs]
    assert (
        pooled_interquartile_mean(groups)
        == pooled_interquartile_mean(groups, 0.95, 0)
        != pooled_interquartile_mean(groups, seed=1)
    )
    assert improvement(pairs) == improvement(pairs, 0.95, 0) != improvement(pairs, seed=1)


def test_intervals_cover_the_true_value_as_often_as_they_say() -> None:
    """Two tasks of 20 normal runs around 1 and 3: the interquartile mean of the mixture is 2."""
    generator = np.random.default_rng(0)
    hits = 0
    for trial in range(200):
        found = pooled_interquartile_mean([generator.normal(mean, 0.5, 20) for mean in (1.0, 3.0)], seed=trial)
        hits += found.low <= 2.0 <= found.high
    assert 180 <= hits <= 200


def test_resampling_stays_within_tasks() -> None:
    """Tasks whose runs are all alike leave no spread, however far the tasks lie from each other."""
    found = pooled_interquartile_mean([np.full(5, 1.0), np.full(5, 9.0)])
    assert (found.low, found.high) == (found.estimate, found.estimate) == (5.0, 5.0)


def test_improvement_is_the_mean_over_tasks_of_pairs_won() -> None:
    own, base = GROUPS, [np.array([2.0, 2.0]), np.array([5.0, 0.1, 2.0])]
    shares = [
        np.mean([1.0 if x < y else 0.5 if x == y else 0.0 for x in a for y in b])
        for a, b in zip(own, base, strict=True)
    ]
    found = improvement(list(zip(own, base, strict=True)))
    assert found.estimate == pytest.approx(np.mean(shares))
    assert found.low <= found.estimate <= found.high
    assert improvement([(np.array([1.0, 1.1]), np.array([2.0, 2.1]))]).low == 1.0


def test_the_interval_of_an_improvement_counts_ties_of_every_draw() -> None:
    """Both sides (1, 2): of 16 draws, equally likely, one wins all pairs and one none, so that 95 % hold 0 and 1."""
    same = np.array([1.0, 2.0])
    assert improvement([(same, same)]) == (0.5, 0.0, 1.0, 2)
    assert improvement([(np.ones(3), np.ones(2))]) == (0.5, 0.5, 0.5, 3)


def test_the_signed_rank_test_pairs_seeds() -> None:
    generator = np.random.default_rng(1)
    base = {seed: float(np.exp(generator.normal())) for seed in range(20)}
    better = {seed: value * 0.99 for seed, value in base.items()}  # far less than the spread over seeds
    assert paired_p([(better, base)]) == pytest.approx(scipy_stats.wilcoxon(np.full(20, math.log(0.99))).pvalue)
    assert paired_p([(better, base)]) < 1e-3
    assert math.isnan(paired_p([(base, base)]))
    few = {seed: better[seed] for seed in range(5)}
    assert math.isnan(paired_p([(few, base)]))


def test_holm_multiplies_step_by_step_and_never_falls() -> None:
    found = holm({"a": 0.001, "b": 0.02, "c": 0.021, "d": 0.9})
    assert found == pytest.approx({"a": 0.004, "b": 0.06, "c": 0.06, "d": 0.9})
    assert holm({"a": 0.9, "b": 0.001, "c": 0.02}) == pytest.approx({"b": 0.003, "c": 0.04, "a": 0.9})
    assert holm({}) == {}
    assert holm({"a": 0.7, "b": 0.8}) == {"a": 1.0, "b": 1.0}


def test_a_profile_weighs_tasks_equally() -> None:
    found = profile([np.array([0.5]), np.array([1.0, 2.0, 3.0, 4.0])], [0.4, 0.5, 1.0, 4.0])
    assert found == pytest.approx([0.0, 0.5, 0.625, 1.0])
