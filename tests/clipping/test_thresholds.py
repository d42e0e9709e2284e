"""Thresholds over 200 steps against plain-Python twins, also across a checkpoint."""

from __future__ import annotations

import io
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from clipbench.clipping import ConstantThreshold, EmaThreshold, QuantileThreshold, Threshold
from tests.reference import thresholds as reference

NAMES = ["a.weight", "b.weight", "c.bias"]
CPU = torch.device("cpu")
RULES: dict[str, tuple[Callable[[], Threshold], Callable[[], object]]] = {
    "ema": (lambda: EmaThreshold(0.9), lambda: reference.Ema(0.9)),
    "ema with epsilon": (lambda: EmaThreshold(0.9, 1e-8), lambda: reference.Ema(0.9, 1e-8)),
    "lower": (lambda: QuantileThreshold(0.85, 100, "lower"), lambda: reference.Quantile(0.85, 100, "lower")),
    "linear": (lambda: QuantileThreshold(0.85, 100, "linear"), lambda: reference.Quantile(0.85, 100, "linear")),
    "short window": (lambda: QuantileThreshold(0.5, 7, "linear"), lambda: reference.Quantile(0.5, 7, "linear")),
}


def stream(steps: int = 200) -> np.ndarray:
    """Heavy-tailed positive values (steps, names); one of them is not finite, as after an overflow."""
    values = np.random.default_rng(0).pareto(1.5, (steps, len(NAMES))).astype(np.float32) + 0.1
    values[57, 1] = np.inf
    values[130, 0] = np.nan
    return values


def through_a_file(state: dict[str, object]) -> dict[str, object]:
    """What torch.load gives back with weights_only."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def compare(make: Callable[[], Threshold], twin: Callable[[], object], resume_at: int | None) -> float:
    """Largest relative difference over 200 steps; at `resume_at` a fresh threshold takes over from a checkpoint."""
    threshold, twins, worst = make(), [twin() for _ in NAMES], 0.0
    for step, row in enumerate(stream()):
        if step == resume_at:
            state = through_a_file(threshold.state_dict())
            threshold = make()
            threshold.load_state_dict(state)
        found = threshold.current(NAMES, CPU).tolist()
        for value, each in zip(found, twins, strict=True):
            expected = each.current()  # type: ignore[attr-defined]
            assert math.isinf(value) == math.isinf(expected)
            if not math.isinf(expected):
                worst = max(worst, abs(value - expected) / expected)
        threshold.update(NAMES, torch.from_numpy(row))
        for value, each in zip(row, twins, strict=True):
            each.update(float(value))  # type: ignore[attr-defined]
    return worst


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("resume_at", [None, 1, 101])
def test_equal_to_the_twin_for_200_steps(rule: str, resume_at: int | None) -> None:
    assert compare(*RULES[rule], resume_at) <= 1e-6


@pytest.mark.parametrize("rule", ["ema", "lower", "linear"])
@pytest.mark.parametrize("include", [False, True])
@pytest.mark.parametrize("feed", [False, True])
def test_the_switches_against_the_twin_across_a_checkpoint(rule: str, include: bool, feed: bool) -> None:
    def make() -> Threshold:
        if rule == "ema":
            return EmaThreshold(0.9, include_current=include, feed_clipped=feed)
        return QuantileThreshold(0.7, 12, rule, include_current=include, feed_clipped=feed)  # type: ignore[arg-type]

    threshold, clipped = make(), 0
    twins = [reference.Ema(0.9) if rule == "ema" else reference.Quantile(0.7, 12, rule) for _ in NAMES]
    for number, row in enumerate(stream()):
        if number == 101:
            state = through_a_file(threshold.state_dict())
            threshold = make()
            threshold.load_state_dict(state)
        values = torch.from_numpy(row).double()
        before = threshold.at(NAMES, values)
        tau = threshold.at(NAMES, values)
        assert torch.equal(before, tau), "asking records nothing"
        threshold.record(NAMES, values, tau)
        for value, twin, found in zip(row, twins, tau.tolist(), strict=True):
            assert found == pytest.approx(reference.step(twin, float(value), include, feed), rel=1e-6)
            clipped += bool(math.isfinite(value) and value > found)
    assert 0 < clipped < 600


def test_a_rule_with_nothing_but_current_and_update_gets_the_switches_too() -> None:
    class Last(Threshold):
        feed_clipped = True

        def __init__(self) -> None:
            self.value = torch.tensor([math.inf])

        def current(self, names: object, device: torch.device) -> torch.Tensor:
            return self.value

        def update(self, names: object, values: torch.Tensor) -> None:
            self.value = values

    last = Last()
    for value, expected in ((3.0, 3.0), (5.0, 3.0), (2.0, 2.0)):
        values = torch.tensor([value])
        last.record(["w"], values, last.at(["w"], values))
        assert float(last.value) == expected


def test_a_rule_that_sees_the_present_step_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Broken on purpose, so that the test above can fail."""
    monkeypatch.setattr("tests.reference.thresholds.Ema.current", lambda self: 1.0 + len(self.history))
    with pytest.raises(AssertionError):
        assert compare(*RULES["ema"], None) <= 1e-6


def test_without_bias_correction_the_first_steps_would_be_wrong() -> None:
    threshold = EmaThreshold(0.9)
    threshold.update(["w"], torch.tensor([3.0]))
    assert threshold.current(["w"], CPU).item() == pytest.approx(3.0, rel=1e-6)


def test_before_the_first_value_nothing_is_clipped() -> None:
    for make, _ in RULES.values():
        assert make().current(NAMES, CPU).tolist() == [math.inf] * 3
    assert ConstantThreshold(2.0).current(NAMES, CPU).tolist() == [2.0] * 3


@pytest.mark.parametrize("make", [*(make for make, _ in RULES.values()), lambda: ConstantThreshold(2.0)])
def test_levels_are_where_the_values_are(make: Callable[[], Threshold]) -> None:
    threshold, there = make(), torch.device("meta")
    threshold.update(NAMES, torch.ones(3))
    assert threshold.current(NAMES, CPU).device == CPU
    assert threshold.current(NAMES, there).device == there
    assert threshold.at(NAMES, torch.ones(3, device=there)).device == there
    late = [*NAMES, "seen there for the first time"]
    assert threshold.current(late, there).shape == (4,)
    assert threshold.current(late, there).device == there


def test_the_state_of_an_unused_threshold_loads() -> None:
    for make, _ in RULES.values():
        threshold = make()
        threshold.load_state_dict(through_a_file(make().state_dict()))
        assert threshold.current(NAMES, CPU).tolist() == [math.inf] * 3


def test_names_may_come_late_leave_and_change_places() -> None:
    """State belongs to the name: parameters without a gradient are missing from a step."""
    threshold = EmaThreshold(0.5)
    threshold.update(["a", "b"], torch.tensor([1.0, 10.0]))
    threshold.update(["c", "a"], torch.tensor([100.0, 3.0]))
    found = dict(zip("bca", threshold.current(["b", "c", "a"], CPU).tolist(), strict=True))
    assert found["b"] == pytest.approx(10.0)
    assert found["c"] == pytest.approx(100.0)
    assert found["a"] == pytest.approx((0.25 * 1.0 + 0.5 * 3.0) / 0.75)


@pytest.mark.parametrize("rule", RULES)
def test_no_value_is_read_by_the_host(rule: str) -> None:
    with FakeTensorMode():
        threshold = RULES[rule][0]()
        for names in (NAMES, NAMES[1:]):
            tau = threshold.current(names, CPU)
            threshold.update(names, torch.empty(len(names)))
            assert tau.shape == (len(names),)


def test_a_checkpoint_of_another_window_is_refused() -> None:
    threshold = QuantileThreshold(0.85, 100)
    threshold.update(["w"], torch.ones(1))
    with pytest.raises(ValueError, match=r"state must hold history of shape \(50,\) for w"):
        QuantileThreshold(0.85, 50).load_state_dict(threshold.state_dict())


def test_a_state_dict_does_not_change_with_later_steps() -> None:
    threshold = EmaThreshold()
    threshold.update(["w"], torch.ones(1))
    state = threshold.state_dict()
    threshold.update(["w"], torch.full((1,), 9.0))
    assert float(state["w"]["mean"]) == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ConstantThreshold(0.0), "value must be > 0, got 0.0"),
        (lambda: ConstantThreshold(math.nan), "value must be > 0, got nan"),
        (lambda: EmaThreshold(1.0), r"coefficient must be in \[0, 1\), got 1.0"),
        (lambda: EmaThreshold(0.9, -1.0), "epsilon must be >= 0"),
        (lambda: EmaThreshold(0.9, math.inf), "epsilon must be >= 0 and finite, got inf"),
        (lambda: QuantileThreshold(1.5), r"quantile must be in \[0, 1\], got 1.5"),
        (lambda: QuantileThreshold(window=0), "window must be >= 1, got 0"),
        (lambda: QuantileThreshold(interpolation="higher"), "interpolation must be lower or linear"),  # type: ignore[arg-type]
    ],
)
def test_bad_arguments_are_named(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
