"""Thresholds that follow past samples' norms, and losses that are summed."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from clipbench.estimators import Batch, PerSample, SampleEma, SampleQuantile
from tests.reference.thresholds import Ema

MICRO = [[1.0, 3.0], [5.0, math.nan], [math.inf, math.inf], [2.0, 8.0], [1.0, 1.0]]


def positions(norms: torch.Tensor) -> torch.Tensor:
    return torch.arange(1.0, len(norms) + 1)


def test_ema_is_the_average_of_past_micro_batches_means() -> None:
    rule, twin = SampleEma(0.8), Ema(0.8)
    for values in MICRO:
        norms = torch.tensor(values)
        expected = twin.current()
        finite = [value for value in values if math.isfinite(value)]
        twin.update(sum(finite) / len(finite) if finite else math.nan)
        found = rule(positions(norms), norms)
        assert found.shape == norms.shape
        assert found.tolist() == pytest.approx([expected] * 2)


def test_quantile_is_the_lower_order_statistic_of_the_last_samples() -> None:
    rule, past = SampleQuantile(0.5, window=5), []
    for values in MICRO:
        norms = torch.tensor(values)
        recent = sorted(past[-5:])
        expected = recent[math.floor(0.5 * (len(recent) - 1))] if recent else math.inf
        assert rule(positions(norms), norms).tolist() == [expected] * 2
        past += [value if math.isfinite(value) else math.inf for value in values]


def line() -> nn.Linear:
    layer = nn.Linear(1, 1, bias=False)
    nn.init.ones_(layer.weight)
    return layer


@pytest.mark.parametrize("make", [lambda: SampleEma(0.5), lambda: SampleQuantile(0.9, 4)])
def test_ps_clip_under_it_clips_from_the_second_step_on_and_resumes(make: object) -> None:
    """The gradient of w·x is x: norms are known."""
    model = line()
    estimator = PerSample(model, make())  # type: ignore[operator]
    steps = [torch.tensor([[1.0], [1.0]]), torch.tensor([[1.0], [10.0]]), torch.tensor([[10.0], [10.0]])]

    def gradient(used: PerSample, inputs: torch.Tensor) -> float:
        model.zero_grad()
        used(iter([model(inputs).squeeze(1)]), len(inputs))
        return float(model.weight.grad)

    assert gradient(estimator, steps[0]) == pytest.approx(1.0), "nothing is clipped before anything is known"
    assert gradient(estimator, steps[1]) == pytest.approx(1.0), "ten is clipped to one"
    resumed = PerSample(model, make())  # type: ignore[operator]
    resumed.load_state_dict(estimator.state_dict())
    assert gradient(estimator, steps[2]) == gradient(resumed, steps[2]) < 10.0
    assert PerSample(model, 1.0).state_dict() == {}


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: SampleEma(1.0), r"coefficient must be in \[0, 1\), got 1.0"),
        (lambda: SampleQuantile(1.5), r"quantile must be in \[0, 1\], got 1.5"),
        (lambda: SampleQuantile(0.5, 0), "window must be >= 1, got 0"),
        (lambda: Batch(line(), "median"), "reduction must be one of mean, sum, got median"),  # type: ignore[arg-type]
    ],
)
def test_bad_options(build: object, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        build()  # type: ignore[operator]


def test_a_summed_loss_gives_n_times_the_gradient_and_reports_the_mean() -> None:
    model, inputs = line(), torch.tensor([[1.0], [2.0], [6.0], [7.0]])
    found = {}
    for reduction in ("mean", "sum"):
        model.zero_grad()
        estimate = Batch(model, reduction)(iter(model(part).squeeze(1) for part in inputs.split(2)), 4)
        found[reduction] = (float(model.weight.grad), float(estimate.loss))
    assert found == {"mean": (4.0, 4.0), "sum": (16.0, 4.0)}
