"""Losses multiplied by a GradScaler: thresholds meet norms without the scale, and the scaler sees what overflows."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from clipbench.per_sample import PerSampleClipper, PowerThreshold
from tests.per_sample.common import flat_gradient, square_loss
from tests.reference.per_sample import clipped_mean, power_thresholds, sample_gradients


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 7), nn.Tanh(), nn.Linear(7, 3)).double()


@pytest.fixture
def x() -> Tensor:
    torch.manual_seed(1)
    return torch.randn(8, 6).double()


@pytest.mark.parametrize("verify", [True, False])
@pytest.mark.parametrize("scale", [64.0, 2, torch.tensor(1024.0), torch.tensor(0.5).double()])
def test_thresholds_meet_norms_without_the_scale(model: nn.Module, x: Tensor, scale: float, verify: bool) -> None:
    clipper = PerSampleClipper(model, PowerThreshold(0.7, 2.0), verify=verify)
    stats = clipper.backward(square_loss(model, x) * scale, scale=scale)
    rows = sample_gradients(model, square_loss, x)
    torch.testing.assert_close(stats.norms, rows.norm(dim=1))
    torch.testing.assert_close(flat_gradient(model), clipped_mean(rows, power_thresholds(8, 0.7, 2.0)) * float(scale))


def test_steps_with_a_scaler_are_steps_without(model: nn.Module, x: Tensor) -> None:
    twin = copy.deepcopy(model)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=2)
    for net in (model, twin):
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
        clipper = PerSampleClipper(net, 0.5)
        for _ in range(5):
            optimizer.zero_grad()
            if net is model:
                clipper.backward(scaler.scale(square_loss(net, x)), scale=scaler.get_scale())
                scaler.step(optimizer)
                scaler.update()
            else:
                clipper.backward(square_loss(net, x))
                optimizer.step()
    assert scaler.get_scale() == 4096.0
    for got, wanted in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize("as_tensor", [True, False])
@pytest.mark.parametrize("bad", [math.inf, math.nan])
def test_the_scaler_skips_a_step_that_is_not_finite(model: nn.Module, x: Tensor, bad: float, as_tensor: bool) -> None:
    """Although the sample would be dropped without a scaler: else the scale would never come down."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    before = [p.detach().clone() for p in model.parameters()]
    weights = torch.ones(8).double()
    weights[2] = bad
    losses = scaler.scale(square_loss(model, x) * weights)
    scale = scaler.get_scale()
    stats = PerSampleClipper(model, 0.5).backward(losses, scale=torch.tensor(scale) if as_tensor else scale)
    assert stats.dropped == 1
    assert all(p.grad is not None and not p.grad.isfinite().all() for p in model.parameters())
    scaler.step(optimizer)
    scaler.update()
    assert scaler.get_scale() == 512.0
    for p, old in zip(model.parameters(), before, strict=True):
        assert torch.equal(p, old)


def test_a_half_precision_overflow_lowers_the_scale_until_it_fits() -> None:
    """float16 under autocast: the first scales overflow, and a later step is taken."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 7), nn.Tanh(), nn.Linear(7, 3))
    x = torch.randn(8, 6)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**22)
    clipper = PerSampleClipper(model, 0.5)
    skipped = 0
    for _ in range(20):
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.float16):
            out = model(x)
        losses = out.float().square().sum(1)
        before, scale = model[0].weight.detach().clone(), scaler.get_scale()
        stats = clipper.backward(scaler.scale(losses), scale=scale)
        scaler.step(optimizer)
        scaler.update()
        skipped += torch.equal(before, model[0].weight)
        assert (scaler.get_scale() < scale) == torch.equal(before, model[0].weight) == bool(stats.dropped)
    assert 0 < skipped < 20
    rows = sample_gradients(model, lambda net, inputs: net(inputs).square().sum(1), x)
    torch.testing.assert_close(
        clipper.backward(model(x).square().sum(1)).norms.double(), rows.norm(dim=1), rtol=1e-4, atol=1e-6
    )


def test_a_disabled_scaler_is_no_scaler(model: nn.Module, x: Tensor) -> None:
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    x[3] = math.nan
    stats = PerSampleClipper(model, 0.5).backward(scaler.scale(square_loss(model, x)), scale=scaler.get_scale())
    assert stats.dropped == 1
    assert flat_gradient(model).isfinite().all()


def test_raising_goes_before_skipping(model: nn.Module, x: Tensor) -> None:
    x[3] = math.nan
    with pytest.raises(FloatingPointError, match="1 of 8"):
        PerSampleClipper(model, 0.5, nonfinite="raise").backward(square_loss(model, x) * 8.0, scale=8.0)
    assert all(p.grad is None for p in model.parameters())


def test_a_scale_on_the_device_is_not_read() -> None:
    with FakeTensorMode():
        model = nn.Linear(3, 2)
        losses = square_loss(model, torch.randn(4, 3))
        scale = torch.tensor(8.0)
        stats = PerSampleClipper(model, 1.0).backward(losses * scale, scale=scale)
        assert stats.norms.shape == (4,)


@pytest.mark.parametrize(
    ("scale", "message"),
    [
        (0.0, "scale must be > 0 and finite, got 0.0"),
        (math.nan, "scale must be > 0 and finite, got nan"),
        (math.inf, "scale must be > 0 and finite, got inf"),
        (torch.ones(2), r"scale must be a number or a tensor of shape \(\), got shape \(2,\)"),
    ],
)
def test_bad_scales(model: nn.Module, x: Tensor, scale: float, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        PerSampleClipper(model, 1.0).backward(square_loss(model, x), scale=scale)
