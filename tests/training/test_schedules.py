"""Factors worked out by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest

from clipbench.training.schedules import Constant, Cosine, Linear, Schedule, Step


def factors(schedule: Schedule, steps: int = 8) -> list[float]:
    return [schedule.factor(step, steps) for step in range(steps)]


def test_constant() -> None:
    assert factors(Constant(), 4) == [1.0] * 4


def test_warm_up_grows_linearly_and_starts_above_zero() -> None:
    assert factors(Constant(warmup=4), 6) == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]


def test_cosine() -> None:
    half = math.sqrt(0.5) / 2
    assert factors(Cosine(), 4) == pytest.approx([1.0, 0.5 + half, 0.5, 0.5 - half])
    assert factors(Cosine(final=0.2), 2) == pytest.approx([1.0, 0.6])


def test_cosine_after_warm_up_spans_the_remaining_steps() -> None:
    assert factors(Cosine(warmup=2), 6) == pytest.approx([0.5, 1.0, *factors(Cosine(), 4)])


def test_cosine_ends_at_its_final_value() -> None:
    assert Cosine(final=0.1).factor(10, 10) == pytest.approx(0.1)
    assert Cosine(final=0.1, warmup=20).factor(5, 10) == pytest.approx(6 / 20)


def test_step_falls_at_each_milestone() -> None:
    assert factors(Step(milestones=[0.5, 0.75], gamma=0.1)) == pytest.approx([1.0] * 4 + [0.1] * 2 + [0.01] * 2)
    assert factors(Step(milestones=[0.5], gamma=0.5, warmup=2), 4) == pytest.approx([0.5, 1.0, 0.5, 0.5])


@pytest.mark.parametrize(
    ("schedule", "options", "message"),
    [
        (Constant, {"warmup": -1}, "warmup must be >= 0, got -1"),
        (Cosine, {"final": 1.5}, r"final must be in \[0, 1\], got 1\.5"),
        (Cosine, {"final": math.nan}, r"final must be in \[0, 1\], got nan"),
        (Cosine, {"warmup": -2}, "warmup must be >= 0, got -2"),
        (Step, {"milestones": [0.5, 0.5]}, r"milestones must be increasing shares in \(0, 1\), got"),
        (Step, {"milestones": [1.0]}, r"milestones must be increasing shares in \(0, 1\), got"),
        (Step, {"gamma": 0.0}, "gamma must be finite and > 0, got"),
        (Step, {"gamma": math.inf}, "gamma must be finite and > 0, got"),
    ],
)
def test_bad_options(schedule: type, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match="^" + message):
        schedule(**options)


def test_linear_falls_straight_to_zero_after_the_last_step() -> None:
    assert [Linear().factor(step, 4) for step in range(5)] == [1.0, 0.75, 0.5, 0.25, 0.0]
    assert [Linear(warmup=2).factor(step, 4) for step in range(3)] == [0.5, 0.75, 0.5]
    with pytest.raises(ValueError, match="warmup must be >= 0, got -1"):
        Linear(warmup=-1)
