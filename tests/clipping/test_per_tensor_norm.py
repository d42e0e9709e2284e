"""Per-tensor norm clipping against its naive twin, what it leaves alone, and norm clipping of a part of the model."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch

from clipbench.clipping import EmaThreshold, NormClip, PerTensorNorm
from tests.clipping.gradients import fill, largest_difference, model, now
from tests.reference import norm as twin
from tests.reference.thresholds import Ema


@pytest.mark.parametrize("tau", [0.5, 8.0, 1e3])
def test_every_parameter_is_clipped_by_its_own_norm(tau: float) -> None:
    module = model()
    before = fill(module, 0)
    stats = PerTensorNorm(tau, skip=[])(module.named_parameters())
    expected = dict(zip(before, twin.per_tensor_norm(list(before.values()), tau), strict=True))
    assert largest_difference(now(module), expected) < 1e-6
    clipped = [twin.total_norm([g]) > tau for g in before.values()]
    assert float(stats.clipped_fraction) == pytest.approx(np.mean(clipped))
    assert float(stats.norm) == pytest.approx(twin.total_norm(list(before.values())), rel=1e-5)


def test_infinity_changes_nothing_and_twice_is_once() -> None:
    module = model()
    before = fill(module, 1)
    stats = PerTensorNorm(math.inf, skip=[])(module.named_parameters())
    assert float(stats.clipped_fraction) == 0.0
    assert all(torch.equal(grad.double(), torch.from_numpy(before[name])) for name, grad in now(module).items())
    PerTensorNorm(1.0, skip=[])(module.named_parameters())
    once = {name: grad.clone() for name, grad in now(module).items()}
    PerTensorNorm(1.0, skip=[])(module.named_parameters())
    for name, grad in now(module).items():
        torch.testing.assert_close(grad, once[name], rtol=1e-6, atol=0)


def test_embeddings_are_left_alone_by_type_and_layers_by_name() -> None:
    module = model()
    before = fill(module, 2)
    stats = PerTensorNorm.for_model(module, 1e-3, skip=["norm", "*.bias"])(module.named_parameters())
    for name, grad in now(module).items():
        untouched = torch.equal(grad.double(), torch.from_numpy(before[name]))
        assert untouched == (name.startswith(("wte", "norm")) or name.endswith("bias")), name
    assert float(stats.clipped_fraction) == 1.0, "a share of those that may be clipped"


def test_zero_and_non_finite_gradients() -> None:
    module = model()
    fill(module, 3)
    gradients = now(module)
    gradients["first.weight"].zero_()
    gradients["tall.weight"][0, 0] = math.nan
    gradients["tall.bias"][0] = math.inf
    kept = {name: gradients[name].clone() for name in ("tall.weight", "tall.bias")}
    PerTensorNorm(1.0, skip=[])(module.named_parameters())
    assert not gradients["first.weight"].any()
    for name, grad in kept.items():
        torch.testing.assert_close(gradients[name], grad, equal_nan=True)
    assert float(gradients["second.weight"].norm()) == pytest.approx(1.0)


def test_an_adaptive_threshold_follows_each_parameter_and_its_state_loads() -> None:
    module, clipper = model(), PerTensorNorm(EmaThreshold(0.5), skip=[])
    twins = {name: Ema(0.5) for name, _ in module.named_parameters()}
    for step in range(4):
        before = fill(module, step)
        if step == 2:
            state = copy.deepcopy(clipper.state_dict())
            clipper = PerTensorNorm(EmaThreshold(0.5), skip=[])
            clipper.load_state_dict(state)
        clipper(module.named_parameters())
        expected = {}
        for name, gradient in before.items():
            tau = twins[name].current()
            expected[name] = twin.norm_clip([gradient], tau)[0] if math.isfinite(tau) else gradient
            twins[name].update(twin.total_norm([gradient]))
        assert largest_difference(now(module), expected) < 1e-6


def test_norm_clipping_of_a_part_measures_and_clips_that_part_only() -> None:
    module = model()
    before = fill(module, 4)
    stats = NormClip(1.0, skip=["head", "*.bias", "norm"])(module.named_parameters())
    chosen = [n for n in before if not (n.startswith(("head", "norm")) or n.endswith("bias"))]
    expected = dict(before) | dict(zip(chosen, twin.norm_clip([before[n] for n in chosen], 1.0), strict=True))
    assert largest_difference(now(module), expected) < 1e-6
    assert float(stats.norm) == pytest.approx(twin.total_norm([before[n] for n in chosen]), rel=1e-5)


def test_bad_options() -> None:
    with pytest.raises(ValueError, match="threshold must be > 0, got 0"):
        PerTensorNorm(0.0)
    with pytest.raises(ValueError, match="skip must be a list of name patterns"):
        NormClip(1.0, skip="head")
