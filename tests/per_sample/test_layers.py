"""Every kind of layer against the batch-of-one loop in float64."""

from __future__ import annotations

import warnings

import pytest
import torch
import torchvision
from torch import Tensor, nn

from clipbench.per_sample import PerSampleClipper
from tests.per_sample.common import errors
from tests.per_sample.zoo import CASES, SLOW_PATH

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", CASES)
def test_matches_the_loop(name: str, dtype: torch.dtype, device: str) -> None:
    torch.manual_seed(0)
    build, inputs = CASES[name]
    x = inputs().to(device)
    model = build().to(device, dtype)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="no per-sample rule")
        off_norms, off_gradient = errors(model, x.to(dtype) if x.is_floating_point() else x, steps=2)
    bound = 1e-12 if dtype is torch.float64 else 1e-5
    assert off_norms < bound
    assert off_gradient < bound


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", SLOW_PATH)
def test_slow_path_matches_the_loop_and_warns_once(name: str, device: str) -> None:
    torch.manual_seed(0)
    build, inputs = SLOW_PATH[name]
    model, x = build().to(device), inputs().to(device)
    with pytest.warns(UserWarning, match="no per-sample rule covers how .* backward passes") as caught:
        off_norms, off_gradient = errors(model, x, steps=3)
    assert len(caught) == 1
    assert "first" not in str(caught[0].message)
    assert max(off_norms, off_gradient) < 1e-5


def test_a_group_of_one_sample_and_of_none() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(4, 3, 3), nn.Flatten(), nn.Linear(3 * 49, 2))
    assert max(errors(model, torch.randn(1, 4, 9, 9))) < 1e-5
    model.zero_grad()
    stats = PerSampleClipper(model, 1.0).backward(model(torch.randn(0, 4, 9, 9)).sum(1))
    assert stats.norms.shape == (0,)
    assert stats.clipped_fraction == 0
    assert stats.dropped == 0
    assert all(p.grad is None for p in model.parameters())


def resnet() -> nn.Module:
    return torchvision.models.resnet18(norm_layer=lambda channels: nn.GroupNorm(8, channels), num_classes=4)


def vit() -> nn.Module:
    return torchvision.models.VisionTransformer(32, 16, 2, 2, 32, 64, num_classes=4)


def alexnet() -> nn.Module:
    return torchvision.models.alexnet(num_classes=4, dropout=0.0)


@pytest.mark.slow
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("build", "size"), [(resnet, 64), (vit, 32), (alexnet, 96)])
def test_torchvision(build: object, size: int, device: str) -> None:
    torch.manual_seed(0)
    model = build().to(device).double()  # type: ignore[operator]

    def loss(net: nn.Module, x: Tensor) -> Tensor:
        return nn.functional.cross_entropy(
            net(x), torch.ones(len(x), dtype=torch.int64, device=device), reduction="none"
        )

    assert max(errors(model, torch.randn(3, 3, size, size, device=device).double(), loss)) < 1e-10
