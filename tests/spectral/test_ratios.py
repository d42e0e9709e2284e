"""Bound and error at every σ_max/τ, in every backend: what is left, against a float64 SVD."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from clipbench.spectral import Backend, clip_singular_values, newton_schulz, randomized_clip, soft_matrices_
from tests.reference import spectral as reference
from tests.spectral.matrices import flat, noise, power_law, with_spectrum

BACKENDS: tuple[Backend, ...] = ("svd", "exact", "randomized", "newton_schulz")
SOFT: tuple[Backend, ...] = ("exact", "newton_schulz")
MATRICES = {
    "noise": noise(20, 30),
    "tall": noise(30, 20),
    "flat": with_spectrum(flat(24), 24, 40),
    "steep": with_spectrum(power_law(24) ** 3, 24, 40),
    "three values": with_spectrum(np.array([9.0, 5.0, 2.0]), 24, 40),
    "ones": torch.ones(10, 10),
}


def error_and_top(found: Tensor, expected: np.ndarray, tau: float) -> tuple[float, float]:
    """Relative error, and σ_max/τ of what is left, in units that leave no range."""
    one, other = found.double().numpy() / tau, expected / tau
    return float(np.linalg.norm(one - other) / np.linalg.norm(other)), reference.sigma_max(one)


def clipped(matrix: Tensor, tau: float, backend: Backend, soft: bool) -> Tensor:
    if not soft:
        return clip_singular_values(matrix, torch.tensor(tau, dtype=torch.float64), backend)[0]
    found = matrix.clone()
    soft_matrices_([found], torch.tensor([tau], dtype=torch.float64), backend)
    return found


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from(sorted(MATRICES)),
    size=st.floats(-30, 36),
    ratio=st.floats(-0.5, 66),
    backend=st.sampled_from(BACKENDS),
)
def test_bound_and_error(
    dtype: torch.dtype, soft: bool, name: str, size: float, ratio: float, backend: Backend
) -> None:
    if soft and backend not in SOFT:
        backend = "newton_schulz"
    matrix = MATRICES[name]
    matrix = (matrix / matrix.abs().max() * 10**size).to(dtype)
    values = matrix.double().numpy()
    tau = max(reference.sigma_max(values) / 10**ratio, 1e-36)
    rule = reference.soft_clip if soft else reference.clip
    error, top = error_and_top(clipped(matrix, tau, backend, soft), rule(values, tau), tau)
    eps = 4e-3 if dtype == torch.bfloat16 else 0.0
    assert top <= 1 + 1e-3 + eps
    if name == "ones" and ratio > 7:  # nine of its values are exactly zero: an SVD gives them directions of its own
        assert top >= 0.99 - eps
        return
    bound = 1.5e-3 if backend == "randomized" else 2e-4  # the error that `randomized` asks of itself
    # Near σ_max/REACH products cut values short that a soft clip would damp: of `three values` those of rounding.
    assert error <= (2e-2 if soft and ratio > 9 else bound) + eps


@pytest.mark.parametrize("size", [1e6, 1e7, 1e8, 1e20, 1e36])
def test_ones_keep_one_value(size: float) -> None:
    for backend in BACKENDS:
        found = clip_singular_values(size * torch.ones(10, 10), 1.0, backend)[0]
        assert reference.sigma_max(found.numpy()) == pytest.approx(1.0, rel=1e-4), backend


def test_of_a_real_spectrum_half_of_the_values_above() -> None:
    """τ at the median of values over twelve orders of magnitude, the lowest of which are rounding."""
    matrix = with_spectrum(np.geomspace(1.0, 1e-12, 96), 96, 128)
    tau = float(reference.values(matrix.numpy())[48])
    expected = reference.clip(matrix.double().numpy(), tau)
    for backend in BACKENDS:
        error = error_and_top(clip_singular_values(matrix, tau, backend)[0], expected, tau)[0]
        assert error <= (1e-3 if backend == "randomized" else 1e-5), backend
    narrow = newton_schulz(matrix[None], torch.tensor([tau]), 10, torch.float32)[0][0]
    assert error_and_top(narrow, expected, tau)[0] > 1e-2, "what products in float32 would give"


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan])
@pytest.mark.parametrize("shape", [(6, 9), (9, 6), (1, 4)])
def test_levels_that_are_no_thresholds(value: float, shape: tuple[int, int]) -> None:
    stack = torch.stack([noise(*shape), noise(*shape, 1)])
    for soft, backends in ((False, BACKENDS), (True, SOFT)):
        for backend in backends:
            found = stack.clone()
            levels = torch.tensor([value, 0.5], dtype=torch.float64)
            if soft:
                soft_matrices_(list(found.unbind()), levels, backend)
            else:
                found = clip_singular_values(stack, levels, backend)[0]
            left = bool(found[0].isnan().all()) if math.isnan(value) else float(found[0].abs().max()) == 0
            assert left, (soft, backend)
            assert reference.sigma_max(found[1].numpy()) <= 0.5 * (1 + 1e-5)


@pytest.mark.parametrize("ratio", [1e3, 1e6, 1e9])
def test_a_given_rank_keeps_the_bound_where_it_finds_all(ratio: float) -> None:
    sigma = np.concatenate([[1.0, 0.3, 0.1], np.full(20, 0.5 / ratio)])
    matrix = with_spectrum(sigma, 30, 40)
    found, top, _ = randomized_clip(matrix, 1 / ratio, rank=5, oversample=5, iterations=2)
    error, left = error_and_top(found, reference.clip(matrix.double().numpy(), 1 / ratio), 1 / ratio)
    assert float(top) == pytest.approx(1.0, rel=1e-5)
    if ratio < 1e8:  # beyond, rounding of the matrix itself is above τ, in more than five directions
        assert left <= 1.01
        assert error <= 1e-2


def test_no_value_is_read_on_the_way_of_accelerators() -> None:
    with FakeTensorMode():
        for dtype in (torch.float32, torch.bfloat16, torch.float64):
            for levels in (torch.ones(2), torch.ones(2, dtype=torch.float64)):
                matrices = [torch.empty(6, 9, dtype=dtype) for _ in range(2)]
                assert newton_schulz(torch.stack(matrices), levels)[0].dtype == dtype
                soft_matrices_(matrices, levels, "newton_schulz")
