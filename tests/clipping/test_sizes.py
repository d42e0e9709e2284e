"""Finite gradients of any size are clipped: squares that overflow or vanish, factors that leave float32."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from clipbench.clipping import (
    Clipper,
    EmaThreshold,
    NormClip,
    QuantileThreshold,
    SoftSpectralClip,
    SpectralClip,
    Threshold,
    ValueClip,
)
from clipbench.clipping.lengths import clip_factor, norms, readable, scale_, total
from tests.reference import spectral as reference

CPU = torch.device("cpu")


def parameter(gradient: Tensor) -> nn.Parameter:
    found = nn.Parameter(torch.zeros_like(gradient))
    found.grad = gradient
    return found


def norm_of(gradient: Tensor) -> float:
    """In units that no square leaves."""
    values = gradient.double().numpy().ravel()
    top = float(np.abs(values).max())
    return top * float(np.linalg.norm(values / top)) if top else 0.0


@pytest.mark.parametrize("value", [1e19, 3e38, 1e-25, 1e-44])
@pytest.mark.parametrize("count", [100, 100_000])
def test_norm_clipping_of_equal_entries(value: float, count: int) -> None:
    """100 entries of 1e19 have a norm of 1e20, whose square is beyond float32."""
    tau = min(1.0, value)
    one = parameter(torch.full((count,), value))
    stats = NormClip(tau)([("w", one)])
    assert float(stats.norm) == pytest.approx(float(torch.tensor(value)) * math.sqrt(count), rel=1e-6)
    assert float(stats.clipped_fraction) == 1
    assert one.grad is not None
    smallest = 1.5e-45  # entries below it are 0
    assert norm_of(one.grad) == pytest.approx(tau, rel=1e-5, abs=smallest * math.sqrt(count))
    assert bool((one.grad > 0).all()) or tau / math.sqrt(count) < smallest


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@settings(max_examples=40, deadline=None)
@given(size=st.floats(-30, 36), tau=st.floats(-30, 36), seed=st.integers(0, 9))
def test_norm_clipping_of_any_size(dtype: torch.dtype, size: float, tau: float, seed: int) -> None:
    gradient = (torch.randn(7, 9, generator=torch.Generator().manual_seed(seed)).clamp(-9, 9) * 10**size).to(dtype)
    before, one = norm_of(gradient), parameter(gradient)
    stats = NormClip(10**tau)([one])
    assert float(stats.norm) == pytest.approx(before, rel=1e-5)
    assert norm_of(gradient) == pytest.approx(min(before, 10**tau), rel=2e-2 if dtype == torch.bfloat16 else 1e-5)


def test_huge_layers_beside_ordinary_ones() -> None:
    grads = [torch.full((10,), 1e38), torch.ones(5), torch.full((3,), 1e-30), torch.zeros(2)]
    norm = float(NormClip(2.0)([parameter(grad) for grad in grads]).norm)
    assert norm == pytest.approx(1e38 * math.sqrt(10), rel=1e-6)
    assert norm_of(grads[0]) == pytest.approx(2.0, rel=1e-6)
    assert float(grads[1][0]) == pytest.approx(2.0 / norm, rel=0.1), "a denormal, not zero"


@pytest.mark.parametrize("rule", [EmaThreshold(0.5), QuantileThreshold(0.5, 3)])
@pytest.mark.parametrize("size", [1e-30, 1e19, 1e36])
def test_adaptive_thresholds_of_huge_and_tiny_norms(rule: Threshold, size: float) -> None:
    clip = NormClip(type(rule)(0.5))
    for factor in (1.0, 2.0, 100.0):
        one = parameter(torch.full((10_000,), factor * size))
        clip([("w", one)])
    assert one.grad is not None
    assert norm_of(one.grad) <= 3 * 100 * size
    assert norm_of(one.grad) >= 100 * size * (1 - 1e-5)
    assert int(clip.non_finite) == 0


@pytest.mark.parametrize("shape", [(100,), (1, 100), (20, 30)])
@pytest.mark.parametrize("size", [1e-44, 1e-30, 1e-12, 1.0, 1e18, 1e36])
@pytest.mark.parametrize("make", [SpectralClip, SoftSpectralClip])
def test_layers_of_any_size(make: Callable[..., Clipper], size: float, shape: tuple[int, ...]) -> None:
    backends = ("exact", "newton_schulz", "svd", "randomized") if make is SpectralClip else ("exact", "newton_schulz")
    start = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * size
    matrix = start.double().reshape(shape[0], -1).numpy()
    sigma = reference.sigma_max(matrix)
    for backend in backends:
        for ratio in (0.5, 3.0, 1e8):
            tau = max(sigma / ratio, 2e-45)
            gradient = start.clone()
            clip = make(tau, backend, skip=[])
            clip.measure_layers()
            clip([("w", parameter(gradient))])
            found = reference.sigma_max(gradient.double().reshape(shape[0], -1).numpy())
            assert found <= tau * (1 + 1e-4) + 1.5e-45 * math.sqrt(start.numel())
            if ratio > 1:
                assert found >= 0.69 * tau - 1.5e-45 * math.sqrt(start.numel())
            stats = clip.layer_stats()["w"]
            assert float(stats["sigma_max"]) == pytest.approx(sigma, rel=5e-4)
            assert int(stats["non_finite"]) == 0


def test_value_clipping_of_huge_and_tiny_entries() -> None:
    one = parameter(torch.tensor([3e38, -3e38, 1e-44, 0.0, 2.0]))
    assert float(ValueClip(1.0)([one]).norm) == pytest.approx(3e38 * math.sqrt(2), rel=1e-6)
    assert one.grad is not None
    assert torch.equal(one.grad, torch.tensor([1.0, -1.0, 1e-44, 0.0, 1.0]))


class Given(Threshold):
    """A rule of somebody's own, which may give anything."""

    def __init__(self, value: float) -> None:
        self.value = value

    def current(self, names: object, device: torch.device) -> Tensor:
        return torch.full((len(names),), self.value, device=device)  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan])
def test_levels_that_are_no_thresholds_never_let_a_gradient_pass(value: float) -> None:
    """As from a layer that was dead so far: its average is 0."""
    clips: list[Clipper] = [NormClip(Given(value))]
    clips += [SpectralClip(Given(value), backend) for backend in ("exact", "svd", "newton_schulz", "randomized")]
    clips += [SoftSpectralClip(Given(value), backend) for backend in ("exact", "newton_schulz")]
    for clip in clips:
        grads = [torch.ones(4, 5), torch.ones(3), torch.zeros(2, 2), torch.zeros(3), torch.zeros(1, 3)]
        clip([(f"w{place}", parameter(grad)) for place, grad in enumerate(grads)])
        for grad in grads[:2]:
            assert bool(grad.isnan().all()) if math.isnan(value) else float(grad.abs().max()) == 0, type(clip)
        if not math.isnan(value):
            assert all(not grad.any() for grad in grads[2:]), type(clip)


@pytest.mark.parametrize("shape", [(5,), (1, 5), (5, 1), (3, 4)])
@pytest.mark.parametrize("make", [SpectralClip, SoftSpectralClip])
def test_layers_of_any_form_are_left_alone_where_an_entry_is_infinite(
    make: Callable[..., Clipper], shape: tuple[int, ...]
) -> None:
    gradient = torch.full(shape, 2.0)
    gradient.view(-1)[1] = math.inf
    before, clip = gradient.clone(), make(0.5)
    assert float(clip([("w", parameter(gradient))]).clipped_fraction) == 0
    assert torch.equal(gradient, before)
    assert int(clip.layer_stats()["w"]["non_finite"]) == 1


def test_a_dead_layer_that_wakes() -> None:
    clip = SpectralClip(EmaThreshold(0.9))
    for value, expected in ((0.0, 0.0), (1.0, 0.0), (1.0, 0.1 / (1 - 0.81))):
        gradient = torch.full((2, 2), value)
        clip([("w", parameter(gradient))])
        assert float(gradient[0, 0]) == pytest.approx(expected, rel=1e-5)


def test_the_way_of_accelerators_gives_the_same_and_reads_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    grads = [torch.randn(70_000) * 1e30, torch.randn(5, 3), torch.zeros(4), torch.randn(6) * 1e-30]
    here = norms(grads)
    with monkeypatch.context() as patch:
        patch.setattr("clipbench.clipping.lengths.readable", lambda tensor: False)
        assert torch.allclose(norms(grads), here, rtol=1e-6, atol=0)
        for factor in (1e-60, 1e-20, 0.5, 0.0):
            scaled = [torch.full((3,), 1e36)]
            scale_(scaled, torch.tensor(factor, dtype=torch.float64))
            assert float(scaled[0][0]) == pytest.approx(float(torch.tensor(1e36)) * factor, rel=1e-5)
    lengths = [here, torch.tensor([]), torch.zeros(3), torch.tensor([3e300, 4e300]), torch.tensor([1e-300, 0.0]),
               torch.tensor([1.0, math.inf])]  # fmt: skip
    plain = [float(total(each.double())) for each in lengths]
    with monkeypatch.context() as patch:
        patch.setattr("clipbench.clipping.lengths.readable", lambda tensor: False)
        assert [float(total(each.double())) for each in lengths] == pytest.approx(plain, rel=1e-12)
    with FakeTensorMode():
        found = norms([torch.empty(70_000), torch.empty(3)])
        scale_([torch.empty(3)], clip_factor(total(found), torch.ones(())))
        assert found.dtype == torch.float64


def test_what_can_be_read_without_waiting() -> None:
    assert readable(torch.ones(1))
    assert not readable(torch.empty(1, device="meta"))
    assert not readable(nn.Parameter(torch.ones(1)))
    assert math.isnan(float(total(torch.tensor([math.nan, 1.0], dtype=torch.float64))))


@pytest.mark.parametrize("norm", [0.0, 1.0, 2.0, math.inf, math.nan])
@pytest.mark.parametrize("tau", [-1.0, 0.0, 1.0, math.inf])
def test_one_factor_and_a_row_of_them_are_the_same(norm: float, tau: float) -> None:
    expected = 1.0 if not math.isfinite(norm) or norm <= max(tau, 0.0) else max(tau, 0.0) / norm
    one, level = torch.tensor(norm, dtype=torch.float64), torch.tensor(tau, dtype=torch.float64)
    assert float(clip_factor(one, level)) == expected
    assert clip_factor(one[None], level[None]).tolist() == [expected]


def test_a_norm_that_is_not_finite_stays_so() -> None:
    assert math.isinf(float(total(norms([torch.tensor([math.inf, 1.0]), torch.ones(2)]))))
    assert math.isnan(float(total(norms([torch.tensor([math.nan, 1.0]), torch.ones(2)]))))
    assert float(total(norms([]))) == 0
