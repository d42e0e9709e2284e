"""Norm and value clipping against their twins, and what all clippers promise."""

from __future__ import annotations

import io
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensor, FakeTensorMode

from clipbench.clipping import Clipper, EmaThreshold, NoClip, NormClip, QuantileThreshold, ValueClip
from clipbench.clipping.norm import KEY
from tests.clipping.gradients import fill, largest_difference, model, now
from tests.reference import norm as reference
from tests.reference import thresholds


def test_norm_clip_against_the_twin() -> None:
    module = model()
    for tau in (0.5, 1e3):
        before = fill(module, 1)
        expected = dict(zip(before, reference.norm_clip(list(before.values()), tau), strict=True))
        stats = NormClip(tau)(module.named_parameters())
        assert largest_difference(now(module), expected) <= 1e-6
        assert float(stats.norm) == pytest.approx(reference.total_norm(list(before.values())), rel=1e-6)
        assert float(stats.clipped_fraction) == (1.0 if tau == 0.5 else 0.0)


def test_a_per_parameter_norm_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Broken on purpose: the largest parameter's norm in the place of the whole gradient's."""
    module = model()
    before = fill(module, 1)
    expected = dict(zip(before, reference.norm_clip(list(before.values()), 0.5), strict=True))
    monkeypatch.setattr("clipbench.clipping.norm.total", lambda norms: norms.max())
    NormClip(0.5)(module.named_parameters())
    assert largest_difference(now(module), expected) > 1e-2


@pytest.mark.parametrize("rule", ["ema", "quantile"])
def test_adaptive_norm_clipping_against_the_twin(rule: str) -> None:
    module = model()
    clip = NormClip(EmaThreshold(0.9) if rule == "ema" else QuantileThreshold(0.85, 10))
    twin = thresholds.Ema(0.9) if rule == "ema" else thresholds.Quantile(0.85, 10, "lower")
    shares = []
    for step in range(30):
        before = fill(module, step, scale=1 + step % 3)
        tau = twin.current()
        twin.update(reference.total_norm(list(before.values())))
        expected = dict(zip(before, reference.norm_clip(list(before.values()), tau), strict=True))
        shares.append(float(clip(module.named_parameters()).clipped_fraction))
        assert largest_difference(now(module), expected) <= 1e-6
    assert shares[0] == 0.0
    assert 0 < np.mean(shares) < 1


def test_value_clip_against_the_twin() -> None:
    module = model()
    before = fill(module, 2)
    expected = dict(zip(before, reference.value_clip(list(before.values()), 0.7), strict=True))
    stats = ValueClip(0.7)(module.named_parameters())
    assert largest_difference(now(module), expected) <= 1e-7
    beyond = sum(int((np.abs(array) > 0.7).sum()) for array in before.values())
    entries = sum(array.size for array in before.values())
    assert float(stats.clipped_fraction) == pytest.approx(beyond / entries, rel=1e-6)


@pytest.mark.parametrize("clip", [NoClip(), NormClip(math.inf), ValueClip(math.inf), NormClip(EmaThreshold())])
def test_no_threshold_is_the_identity_to_the_last_bit(clip: Clipper) -> None:
    module = model()
    before = fill(module, 3)
    stats = clip(module.named_parameters())
    assert all(np.array_equal(now(module)[name].double().numpy(), before[name]) for name in before)
    assert float(stats.clipped_fraction) == 0


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_is_left_so_that_it_shows(bad: float) -> None:
    module = model()
    norm, value = NormClip(EmaThreshold()), ValueClip(0.1)
    fill(module, 4)
    norm(module.named_parameters())
    fill(module, 5)
    module.first.weight.grad[2, 3] = bad
    before = {name: grad.clone() for name, grad in now(module).items()}
    stats = norm(module.named_parameters())
    assert all(torch.equal(grad.nan_to_num(9.0), before[name].nan_to_num(9.0)) for name, grad in now(module).items())
    assert not math.isfinite(float(stats.norm))
    assert float(stats.clipped_fraction) == 0
    assert int(norm.non_finite) == 1
    assert math.isfinite(float(norm.threshold.current([KEY], torch.device("cpu"))))
    value(module.named_parameters())
    entry = float(module.first.weight.grad[2, 3])
    assert math.isnan(entry) if math.isnan(bad) else entry == bad
    assert float(module.second.weight.grad.abs().max()) <= 0.1 + 1e-7


def test_parameters_without_a_gradient_and_no_gradient_at_all() -> None:
    module = model()
    fill(module, 6)
    module.first.weight.grad = None
    for clip in (NoClip(), NormClip(0.5), ValueClip(0.5)):
        clip(module.named_parameters())
    assert module.first.weight.grad is None
    module.zero_grad()
    for clip in (NormClip(EmaThreshold()), ValueClip(0.5)):
        assert float(clip(module.named_parameters()).norm) == 0  # type: ignore[arg-type]
    assert NoClip()([]).norm is None


def test_mixed_precisions_share_one_norm() -> None:
    module = nn.ModuleList([nn.Linear(3, 4), nn.Linear(3, 4).to(torch.bfloat16), nn.Linear(3, 4).double()])
    for parameter in module.parameters():
        parameter.grad = torch.full_like(parameter, 300.0)
    norm = NormClip(1.0)(module.named_parameters()).norm
    assert float(norm) == pytest.approx(300 * math.sqrt(3 * 16), rel=1e-6)
    whole = math.sqrt(sum(float(p.grad.double().square().sum()) for p in module.parameters()))
    assert whole == pytest.approx(1.0, rel=1e-2)


def test_no_value_is_read_by_the_host() -> None:
    with FakeTensorMode():
        module = model()
        for parameter in module.parameters():
            parameter.grad = torch.empty_like(parameter)
        for clip in (NoClip(), NormClip(1.0), NormClip(EmaThreshold()), NormClip(QuantileThreshold()), ValueClip(1.0)):
            for _ in range(2):
                stats = clip(module.named_parameters())
                assert stats.clipped_fraction.shape == ()
            if not isinstance(clip, NoClip):
                assert isinstance(stats.norm, FakeTensor), "it is measured, and stays where it is"
                with pytest.raises(DataDependentOutputException):
                    stats.norm.item()


def test_state_goes_through_a_checkpoint() -> None:
    module, clip = model(), NormClip(EmaThreshold())
    for step in range(3):
        fill(module, step)
        clip(module.named_parameters())
    file = io.BytesIO()
    torch.save(clip.state_dict(), file)
    file.seek(0)
    fresh = NormClip(EmaThreshold())
    fresh.load_state_dict(torch.load(file, weights_only=True))
    fill(module, 9)
    expected = clip(module.named_parameters()).clipped_fraction, now(module)["conv.weight"].clone()
    fill(module, 9)
    assert torch.equal(fresh(module.named_parameters()).clipped_fraction, expected[0])
    assert torch.equal(now(module)["conv.weight"], expected[1])


@pytest.mark.parametrize("make", [NormClip, ValueClip])
@pytest.mark.parametrize("bad", [0.0, -1.0, math.nan])
def test_bad_thresholds_are_named(make: type, bad: float) -> None:
    with pytest.raises(ValueError, match="threshold must be > 0, got"):
        make(bad)


def test_the_norm_of_very_many_entries_keeps_its_digits() -> None:
    """Summed one after the other in float32, the squares of 2²⁵ equal entries stop growing."""
    parameter = nn.Parameter(torch.zeros(2**25))
    parameter.grad = torch.full((2**25,), 0.01)
    assert float(NormClip(1.0)([("w", parameter)]).norm) == pytest.approx(0.01 * 2**12.5, rel=1e-4)  # type: ignore[arg-type]
