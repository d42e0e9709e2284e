"""Median and medoid of micro-batches, sample weights and the adaptive share, against NumPy on formed gradients."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from clipbench.estimators import MedianOfMicroBatches, MedoidOfMicroBatches, PerSample, SampleShare
from clipbench.per_sample import AdaptiveWeight, AutomaticWeight, NormalizedWeight, SmoothWeight
from tests.reference.rules import medoid


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).double()


def losses(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return model(x).square().squeeze(1)


def batches(count: int, size: int = 5) -> list[torch.Tensor]:
    draws = torch.Generator().manual_seed(1)
    return [torch.randn(size, 3, generator=draws, dtype=torch.float64) * 3**i for i in range(count)]


def flat(model: nn.Module) -> np.ndarray:
    return torch.cat([p.grad.flatten() for p in model.parameters()]).numpy().copy()


def formed(parts: list[torch.Tensor]) -> np.ndarray:
    model, rows = network(), []
    for part in parts:
        model.zero_grad()
        losses(model, part).mean().backward()
        rows.append(flat(model))
    return np.stack(rows)


@pytest.mark.parametrize("count", [1, 2, 3, 5])
@pytest.mark.parametrize(
    ("kind", "twin"), [(MedianOfMicroBatches, lambda rows: np.median(rows, axis=0)), (MedoidOfMicroBatches, medoid)]
)
def test_robust_means(kind, twin, count: int) -> None:
    model, parts = network(), batches(count)
    estimate = kind(model)((losses(model, part) for part in parts), 5 * count)
    np.testing.assert_allclose(flat(model), twin(formed(parts)), atol=1e-12)
    mean = torch.cat([losses(model, part) for part in parts]).mean()
    torch.testing.assert_close(estimate.loss, mean.detach())


def test_the_medoid_ignores_a_lost_micro_batch_and_the_median_shows_it() -> None:
    parts = batches(3)
    parts[1][0, 0] = math.nan
    model = network()
    MedoidOfMicroBatches(model)((losses(model, part) for part in parts), 15)
    assert np.isfinite(flat(model)).all()
    model = network()
    MedianOfMicroBatches(model)((losses(model, part) for part in parts), 15)
    assert np.isnan(flat(model)).any()


def test_gradients_are_added() -> None:
    model, parts = network(), batches(3)
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    MedianOfMicroBatches(model)((losses(model, part) for part in parts), 15)
    np.testing.assert_allclose(flat(model), 1 + np.median(formed(parts), axis=0), atol=1e-12)


WEIGHTS = {
    "automatic": (AutomaticWeight(0.05), lambda norm, tau: tau / (norm + 0.05)),
    "normalized": (NormalizedWeight(), lambda norm, tau: tau / norm),
    "adaptive": (AdaptiveWeight(0.2), lambda norm, tau: tau / (norm + 0.2 / (norm + 0.2))),
    "smooth": (SmoothWeight(), lambda norm, tau: tau / (norm + tau)),
}


@pytest.mark.parametrize("name", WEIGHTS)
def test_sample_weights(name: str) -> None:
    rule, twin = WEIGHTS[name]
    model, (part,) = network(), batches(1)
    PerSample(model, 0.7, weight=rule)([losses(model, part)], 5)
    rows = formed([row[None] for row in part])
    norms = np.linalg.norm(rows, axis=1)
    np.testing.assert_allclose(flat(model), (twin(norms, 0.7)[:, None] * rows).mean(axis=0), rtol=1e-9)


def test_weights_of_zero_gradients_are_finite() -> None:
    zero, one = torch.zeros(2), torch.ones(2)
    for rule, _ in WEIGHTS.values():
        assert torch.isfinite(rule(zero, one)).all()
    assert torch.equal(NormalizedWeight()(zero, one), zero)


@pytest.mark.parametrize("make", [lambda: AutomaticWeight(0.0), lambda: AdaptiveWeight(-1.0)])
def test_bad_weights_are_refused(make) -> None:
    with pytest.raises(ValueError, match="must be > 0, got"):
        make()


def test_the_share_rule_finds_the_quantile() -> None:
    rule = SampleShare(quantile=0.3, rate=0.2, start=50.0)
    draws = torch.Generator().manual_seed(0)
    for _ in range(400):
        norms = torch.rand(256, generator=draws) * 10
        tau = rule(torch.arange(256), norms)
    assert float(tau[0]) == pytest.approx(3.0, abs=0.3)
    again = SampleShare(quantile=0.3)
    again.load_state_dict(rule.state_dict())
    assert torch.equal(again.logarithm, rule.logarithm)


def test_the_share_rules_first_step_by_hand() -> None:
    rule = SampleShare(quantile=0.5, rate=0.2, start=1.0)
    rule(torch.arange(4), torch.tensor([0.5, 2.0, 3.0, math.inf]))
    assert float(rule.logarithm) == pytest.approx(-0.2 * (0.25 - 0.5))
