"""Statements and verdicts: each rule of the order, and what must not decide."""

from __future__ import annotations

import math

import numpy as np
import pytest

from clipbench.analysis.claims.statement import Statement, decide
from clipbench.analysis.stats import Interval, mean_interval


def statement(low: float, high: float, n: int = 10, **options) -> Statement:
    return Statement("effect", Interval((low + high) / 2, low, high, n), options.pop("side", "above"), **options)


@pytest.mark.parametrize(
    ("low", "high", "options", "state"),
    [
        (0.1, 0.5, {}, "shown"),
        (-0.5, -0.1, {}, "refuted"),
        (-0.1, 0.5, {}, "open"),
        (0.0, 0.5, {}, "open"),  # touching the bound is not beyond it
        (0.1, 0.5, {"side": "below"}, "refuted"),
        (-0.5, -0.1, {"side": "below"}, "shown"),
        (0.9, 1.04, {"side": "below", "bound": 1.05}, "shown"),
        (-0.5, 0.5, {"margin": 1.0}, "refuted"),
        (-0.5, 1.5, {"margin": 1.0}, "open"),
        (0.1, 0.5, {"margin": 1.0}, "shown"),  # shown is asked first
        (0.1, 0.5, {"n": 4}, "open"),
        (0.1, 0.5, {"n": 4, "seeds": False}, "shown"),
        (0.1, 0.5, {"identical": True}, "refuted"),
        (math.nan, math.nan, {}, "open"),
        (-math.inf, math.inf, {}, "open"),
    ],
)
def test_states(low, high, options, state):
    assert statement(low, high, **options).state == state


def test_verdicts_in_their_order():
    shown, refuted, opened = statement(0.1, 0.5), statement(-0.5, -0.1), statement(-0.1, 0.5)
    inside = statement(-0.1, 0.1, margin=1.0)
    assert decide([shown, shown]).verdict == "reproduced"
    assert decide([shown, refuted]).verdict == "not reproduced"
    assert decide([inside, inside]).verdict == "not reproduced"
    assert decide([shown, opened]).verdict == "partly"
    assert decide([opened, opened]).verdict == "not decided"
    assert decide([]).verdict == "not decided"


def test_what_is_only_shown_beside_decides_nothing():
    assert decide([statement(0.1, 0.5), statement(-0.5, -0.1, required=False)]).verdict == "reproduced"
    assert decide([statement(-0.5, -0.1, required=False)]).verdict == "not decided"


def test_any_of_a_group_is_enough_and_all_must_fail():
    shown, refuted, opened = (statement(*x, group="any") for x in ((0.1, 0.5), (-0.5, -0.1), (-0.1, 0.5)))
    assert decide([shown, refuted]).verdict == "reproduced"
    assert decide([refuted, refuted]).verdict == "not reproduced"
    assert decide([refuted, opened]).verdict == "not decided"


def test_seeds_needed_are_enough_in_a_simulation():
    rng = np.random.default_rng(0)
    values = rng.normal(0.5, 1.0, 6)
    one = Statement("effect", mean_interval(values), "above")
    if one.state == "open":
        wanted = one.seeds_needed()
        assert wanted is not None
        spread, mean = values.std(ddof=1), values.mean()
        assert 1.9 * spread / math.sqrt(wanted) < abs(mean) < 2.6 * spread / math.sqrt(wanted - 1)
    assert statement(0.0, 0.0).seeds_needed() is None
    assert statement(-1.0, 1.0).seeds_needed() is None  # an estimate of zero is never told from zero


def test_an_open_verdict_says_how_many_seeds_would_do():
    assert "seeds would decide" in decide([statement(-0.1, 0.5)]).reason
