"""Intervals within a metric's bounds: the ordinary one for small spreads, never beyond the bound for large ones."""

from __future__ import annotations

import math

import numpy as np
import pytest

from clipbench.analysis.bounded import band, metric_interval
from clipbench.analysis.stats import mean_interval


def test_small_spreads_leave_the_ordinary_interval():
    values = [0.251, 0.249, 0.252, 0.248, 0.250]
    for metric in ("test_accuracy", "test_loss", "something"):
        assert metric_interval(values, metric) == pytest.approx(mean_interval(values), abs=2e-5)


def test_hand_computed():
    # n = 2, mean 2, s = √2·... of (1, 3): s = √2, half = 12.7062 · √2/√2 = 12.7062
    found = metric_interval([1.0, 3.0], "loss")
    assert found.low == pytest.approx(2 * math.exp(-12.7062 / 2), rel=1e-4)
    assert found.high == pytest.approx(2 * math.exp(12.7062 / 2), rel=1e-4)
    share = metric_interval([0.4, 0.6], "accuracy")
    width = 12.7062 * 0.1 * math.sqrt(2) / math.sqrt(2) / 0.25
    assert share.low == pytest.approx(1 / (1 + math.exp(width)), rel=1e-3)
    assert share.low + share.high == pytest.approx(1.0)


@pytest.mark.parametrize("metric", ["test_accuracy", "train_loss", "clipped_fraction"])
def test_bounds_hold_whatever_the_spread(metric):
    rng = np.random.default_rng(0)
    for _ in range(200):
        values = rng.beta(0.2, 0.2, size=rng.integers(2, 10))
        low, high = metric_interval(values, metric)[1:3]
        assert low <= values.mean() <= high
        if 0 < values.mean() < 1:
            assert low >= 0
            assert high <= 1 or metric == "train_loss"


def test_coverage_on_a_bounded_metric():
    """Covers the true mean at least as often as the ordinary interval, near a bound."""
    rng = np.random.default_rng(1)
    hits = np.zeros(2)
    for _ in range(2000):
        values = rng.beta(1.0, 9.0, size=5)
        for i, interval in enumerate((mean_interval(values), metric_interval(values, "accuracy"))):
            hits[i] += interval.low <= 0.1 <= interval.high
    assert hits[1] >= hits[0] - 20


def test_a_mean_on_the_bound_has_the_ordinary_interval():
    for value, metric in ((0.0, "accuracy"), (1.0, "accuracy"), (0.0, "loss")):
        assert metric_interval([value] * 3, metric) == mean_interval([value] * 3) == (value, value, value, 3)


@pytest.mark.parametrize("metric", ["test_loss", "estimator_error", "gradient_norm", "train_seconds"])
def test_what_cannot_fall_below_zero_has_no_bound_there(metric):
    values = [0.1, 0.1, 9.0]
    assert mean_interval(values).low < 0 < metric_interval(values, metric).low


def test_the_bootstrap_and_a_lone_value_are_left_alone():
    values = np.random.default_rng(3).beta(0.2, 0.2, size=20)
    assert metric_interval(values, "accuracy") == mean_interval(values)
    assert metric_interval([0.5], "accuracy") == pytest.approx((0.5, math.nan, math.nan, 1), nan_ok=True)


@pytest.mark.parametrize("runs", [1, 2, 6, 20])
def test_a_band_is_the_interval_of_every_row(runs):
    table = np.random.default_rng(2).uniform(size=(4, runs))
    low, high = band(table, "accuracy")
    for row, a, b in zip(table, low, high, strict=True):
        assert (a, b) == pytest.approx(metric_interval(row, "accuracy")[1:3], nan_ok=True)
