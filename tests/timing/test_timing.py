"""Interleaving against a machine that is not quiet, and the figures made of the rounds."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from clipbench.timing import interleaved as timing
from clipbench.timing.interleaved import interleave, ratio
from clipbench.timing.session import timing as figures


class Machine:
    """A simulated clock: work of w takes w / speed(t) seconds."""

    def __init__(self, speed: Callable[[float], float]) -> None:
        self.now, self.speed = 0.0, speed

    def perf_counter(self) -> float:
        return self.now

    def work(self, amount: float) -> None:
        self.now += amount / self.speed(self.now)


@pytest.mark.parametrize(
    "speed",
    [
        lambda t: 1.0,
        lambda t: 1.0 / (1.0 + t / 100.0),  # slower and slower
        lambda t: 0.25 if 50 < t % 200 < 120 else 1.0,  # a neighbour comes and goes
    ],
    ids=["quiet", "drift", "neighbour"],
)
def test_the_ratio_survives_a_disturbed_machine(
    speed: Callable[[float], float], monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = Machine(speed)
    monkeypatch.setattr(timing.time, "perf_counter", machine.perf_counter)
    seconds = interleave({"a": lambda: machine.work(1.0), "b": lambda: machine.work(2.0)}, rounds=101)
    found = ratio(seconds["b"], seconds["a"])
    assert found.estimate == pytest.approx(2.0, rel=0.12)
    assert found.low <= 2.0 * 1.05
    assert found.high >= 2.0 * 0.95


def test_one_after_the_other_it_would_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """What interleaving is for: on the same drifting machine, two separate measurements are off by more than half."""
    machine = Machine(lambda t: 1.0 / (1.0 + t / 100.0))
    monkeypatch.setattr(timing.time, "perf_counter", machine.perf_counter)
    first = interleave({"a": lambda: machine.work(1.0)}, rounds=101)["a"]
    second = interleave({"b": lambda: machine.work(2.0)}, rounds=101)["b"]
    assert ratio(second, first).estimate > 3.0


def test_figures_by_hand() -> None:
    """Median 4 of five rounds, two steps each: 2 s a step; quartiles 3 and 5: spread 2 / 4; ratio to a base of 2."""
    found = figures([2.0, 3.0, 4.0, 5.0, 6.0], [2.0] * 5, repeats=2)
    assert found.step_seconds == 2.0
    assert found.spread == 0.5
    assert found.ratio.estimate == 2.0
    assert found.ratio.n == 5
    assert 1.0 <= found.ratio.low < 2.0 < found.ratio.high <= 3.0


def test_the_baseline_s_ratio_to_itself_has_no_uncertainty() -> None:
    seconds = list(np.random.default_rng(0).lognormal(size=30))
    assert figures(seconds, seconds, 1).ratio[:3] == (1.0, 1.0, 1.0)
