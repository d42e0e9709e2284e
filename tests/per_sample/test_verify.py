"""The check against one backward pass a sample: it sees wrong norms and sums, names them, and leaves `.grad` alone."""

from __future__ import annotations

import contextlib
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from clipbench.per_sample import PerSampleClipper
from clipbench.per_sample.rules import linear
from clipbench.per_sample.rules.linear import LinearUse
from clipbench.per_sample.verify import _agree, coarsest
from tests.per_sample.common import flat_gradient, square_loss
from tests.per_sample.zoo import Rotated


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 7), nn.LayerNorm(7), nn.Linear(7, 3)).double()


@pytest.fixture
def x() -> Tensor:
    torch.manual_seed(1)
    return torch.randn(5, 6).double()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_right_step_is_the_same_with_the_check(model: nn.Module, x: Tensor, dtype: torch.dtype) -> None:
    model, x = model.to(dtype), x.to(dtype)
    gradients = []
    for verify in (False, True):
        model.zero_grad()
        clipper = PerSampleClipper(model, 0.5, verify=verify)
        for _ in range(2):  # a gradient is added to
            clipper.backward(square_loss(model, x))
        gradients.append(flat_gradient(model))
    assert torch.equal(*gradients)


def test_the_bound_follows_the_coarsest_dtype_on_the_way(model: nn.Module, x: Tensor) -> None:
    assert coarsest(square_loss(model, x)) == torch.finfo(torch.float64).eps
    assert coarsest(square_loss(model, x).float().double()) == torch.finfo(torch.float32).eps
    model, x = model.float(), x.float()
    with torch.autocast("cpu", torch.bfloat16):
        losses = square_loss(model, x)
    assert coarsest(losses) == torch.finfo(torch.bfloat16).eps
    PerSampleClipper(model, 0.5, verify=True).backward(losses)


def test_wrong_norms_are_named(model: nn.Module, x: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    right = linear.outer_norms
    monkeypatch.setattr(
        linear, "outer_norms", lambda left, right_, bias=False: right(left, right_, bias) * (1 + 1e-6 * left.shape[1])
    )
    losses = square_loss(model, x)
    with pytest.raises(RuntimeError, match=r"norms of 0.weight differ by 7e-06 of the largest \(sample \d\)"):
        PerSampleClipper(model, 0.5, verify=True).backward(losses)
    with pytest.raises(RuntimeError, match=r"2.weight differ by 3e-06.* over all parameters is [\d.]+, got [\d.]+"):
        PerSampleClipper(model, 0.5, verify=True).backward(square_loss(model, x))
    PerSampleClipper(model.float(), 0.5, verify=True).backward(square_loss(model, x.float()))  # within float32's bound


def test_norms_are_compared_sample_by_sample_but_for_tiny_ones() -> None:
    """One of a tenth of the largest by itself; below a hundredth of it rounding is as large as there."""
    truth, use = torch.tensor([1.0, 0.1, 1e-4]).double(), torch.tensor([True, True, True])
    for place, off, agrees in ((1, 0.9e-4, True), (1, 1.1e-4, False), (2, 0.9e-5, True), (2, 1.1e-5, False)):
        norms = truth.clone()
        norms[place] += off
        assert _agree(norms, truth, use, 1e-3) is agrees
        use[place] = False
        assert _agree(norms, truth, use, 1e-3)
        use[place] = True


@pytest.mark.parametrize("before", [None, 3.0])
def test_a_wrong_sum_is_named_and_nothing_is_added(
    model: nn.Module, x: Tensor, before: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = LinearUse.weighted

    def wrong(self: Any, gamma: Any) -> dict[str, Tensor]:
        sums = right(self, gamma)
        return sums | {"weight": sums["weight"].flip(0)} if self.slots["weight"].param.shape[0] == 3 else sums

    monkeypatch.setattr(LinearUse, "weighted", wrong)
    for p in model.parameters():
        p.grad = None if before is None else torch.full_like(p, before)
    with pytest.raises(RuntimeError, match=r"got others \(verify=True\): the weighted sum of 2.weight differs by"):
        PerSampleClipper(model, 0.5, verify=True).backward(square_loss(model, x))
    for p in model.parameters():
        assert p.grad is None if before is None else bool((p.grad == before).all())


@pytest.mark.parametrize("size", [1e-7, 1.0, 1e7])
@pytest.mark.parametrize("off", [0.0, 1e-6])
def test_sums_are_compared_beside_what_they_are_made_of(
    model: nn.Module, x: Tensor, size: float, off: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not by their own size, for samples may cancel, nor by anything that gradients of another size would change."""
    right = LinearUse.weighted

    def wrong(self: Any, gamma: Any) -> dict[str, Tensor]:
        return {role: gradient * (1 + off) for role, gradient in right(self, gamma).items()}

    monkeypatch.setattr(LinearUse, "weighted", wrong)
    refused = pytest.raises(RuntimeError, match=r"the weighted sum of 0\.weight") if off else contextlib.nullcontext()
    with refused:
        PerSampleClipper(model, math.inf, lambda norms, tau: torch.ones_like(norms), verify=True).backward(
            square_loss(model, x) * size
        )


def test_many_wrong_parameters_are_counted(x: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    net = nn.Sequential(*[nn.Linear(6, 6) for _ in range(12)]).double()
    monkeypatch.setattr(linear, "outer_norms", lambda left, right, bias=False: left.new_ones(len(left)))
    with pytest.raises(RuntimeError, match="and those of 4 more parameters"):
        PerSampleClipper(net, 0.5, verify=True).backward(square_loss(net, x))


def test_what_is_not_finite_is_left_out(model: nn.Module, x: Tensor) -> None:
    weights = torch.ones(5).double()
    weights[1] = math.nan
    stats = PerSampleClipper(model, 0.5, verify=True).backward(square_loss(model, x) * weights)
    assert stats.dropped == 1
    assert flat_gradient(model).isfinite().all()


def test_zero_gradients_pass(model: nn.Module, x: Tensor) -> None:
    stats = PerSampleClipper(model, 0.5, verify=True).backward(square_loss(model, x) * 0.0)
    assert stats.norms.tolist() == [0.0] * 5


def test_the_slow_path_and_unused_parameters_pass(x: Tensor) -> None:
    """A parameter that an operation with several outputs reads, and a layer that nothing reads."""
    torch.manual_seed(0)
    net = nn.ModuleList([Rotated(), nn.Linear(2, 2)]).double()
    losses = net[0](x).square().sum(1)
    with pytest.warns(UserWarning, match="no per-sample rule"):
        PerSampleClipper(net, 0.5, verify=True).backward(losses)
    assert net[1].weight.grad is None
