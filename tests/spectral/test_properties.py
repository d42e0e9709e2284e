"""Identities of spectral clipping over random shapes, and the inputs that break careless code."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from clipbench.spectral import Backend, clip_singular_values
from tests.reference import spectral as reference
from tests.spectral.matrices import error, flat, noise, with_spectrum

BACKENDS: tuple[Backend, ...] = ("svd", "exact", "randomized", "newton_schulz")
shapes = st.tuples(st.integers(1, 90), st.integers(1, 90))


@settings(max_examples=25, deadline=None)
@given(shape=shapes, seed=st.integers(0, 99), fraction=st.floats(0.05, 0.99))
def test_bound_idempotence_and_directions(shape: tuple[int, int], seed: int, fraction: float) -> None:
    matrix = noise(*shape, seed)
    tau = fraction * reference.sigma_max(matrix.numpy())
    once, _ = clip_singular_values(matrix, tau, "exact")
    assert reference.sigma_max(once.numpy()) <= tau * (1 + 1e-5)
    twice, _ = clip_singular_values(once, tau, "exact")
    assert torch.allclose(once, twice, atol=2e-6 * tau, rtol=0)
    # Singular directions are kept: Gᵀ C and G Cᵀ are symmetric, and C has the expected values.
    promoted, clipped = matrix.double(), once.double()
    for product in (promoted.mT @ clipped, promoted @ clipped.mT):
        assert (product - product.mT).abs().max() <= 2e-5 * product.abs().max()
    assert error(once, reference.clip(matrix.numpy(), tau)) <= 1e-5


@settings(max_examples=10, deadline=None)
@given(shape=shapes, seed=st.integers(0, 99))
@pytest.mark.parametrize("backend", BACKENDS)
def test_rank_one_is_norm_clipping(backend: Backend, shape: tuple[int, int], seed: int) -> None:
    random = np.random.default_rng(seed)
    outer = np.outer(random.standard_normal(shape[0]), random.standard_normal(shape[1]))
    matrix = torch.tensor(outer, dtype=torch.float32)
    norm = float(torch.linalg.vector_norm(matrix, dtype=torch.float64))
    clipped, sigma = clip_singular_values(matrix, 0.3 * norm, backend)
    assert float(sigma) == pytest.approx(norm, rel=1e-5)
    assert error(clipped, matrix.double().numpy() * 0.3) <= 2e-5


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (7, 1), (5, 5), (70, 90), (90, 70)])
def test_infinite_tau_is_the_identity_to_the_last_bit(backend: Backend, shape: tuple[int, int]) -> None:
    matrix = noise(*shape)
    clipped, sigma = clip_singular_values(matrix, math.inf, backend)
    assert torch.equal(clipped, matrix)
    assert float(sigma) == pytest.approx(reference.sigma_max(matrix.numpy()), rel=1e-3)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("scale", [1e-42, 1e-30, 1e-12, 1e12, 1e18, 1e30])
def test_denormal_and_huge_entries(backend: Backend, scale: float) -> None:
    matrix = (with_spectrum(flat(70), 70, 80) / 10 * scale).float()
    expected = reference.clip(matrix.double().numpy(), 0.2 * scale)
    clipped, sigma = clip_singular_values(matrix, 0.2 * scale, backend)
    # A denormal has so many bits and no more: the smallest one, 1.4e-45, is the rounding of an entry.
    rounding = 1.5e-45 * math.sqrt(matrix.numel())
    bound = 1e-3 if backend == "randomized" else 2e-5
    assert np.linalg.norm(clipped.double().numpy() - expected) <= bound * np.linalg.norm(expected) + rounding
    assert float(sigma) == pytest.approx(3.0 * scale, rel=1e-2 if scale < 1e-38 else 1e-4)


@pytest.mark.parametrize("backend", BACKENDS)
def test_zero_and_rank_deficient(backend: Backend) -> None:
    clipped, sigma = clip_singular_values(torch.zeros(80, 90), 0.5, backend)
    assert float(sigma) == 0
    assert torch.equal(clipped, torch.zeros(80, 90))
    deficient = with_spectrum(np.array([9.0, 5.0, 2.0, 1.0]), 80, 90)
    clipped, _ = clip_singular_values(deficient, 3.0, backend)
    assert error(clipped, reference.clip(deficient.numpy(), 3.0)) <= 2e-5


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_non_finite_matrices_come_back_as_they_are(backend: Backend, bad: float) -> None:
    stack = torch.stack([noise(20, 30, 0), noise(20, 30, 1)])
    stack[0, 3, 4] = bad
    clipped, sigma = clip_singular_values(stack, 2.0, backend)
    assert torch.equal(clipped[0].isnan(), stack[0].isnan())
    assert torch.equal(clipped[0].nan_to_num(7.0), stack[0].nan_to_num(7.0))
    assert bool(sigma[0].isnan())
    assert reference.sigma_max(clipped[1].numpy()) <= 2.0 * 1.001


def test_the_input_is_not_changed_and_may_be_strided() -> None:
    storage = noise(60, 200)
    before = storage.clone()
    view = storage[::2, ::2].mT
    clipped, _ = clip_singular_values(view, 3.0)
    assert torch.equal(storage, before)
    assert error(clipped, reference.clip(view.numpy(), 3.0)) <= 1e-5


def test_gradients_do_not_flow_and_empty_matrices_pass() -> None:
    assert not clip_singular_values(noise(4, 5).requires_grad_(), 1.0)[0].requires_grad
    assert clip_singular_values(torch.empty(3, 0, 4), 1.0)[0].shape == (3, 0, 4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.ones(3), 1.0), "matrix must have at least two dimensions"),
        ((torch.ones(3, 3, dtype=torch.int64), 1.0), "matrix must have a floating dtype"),
        ((torch.ones(3, 3), 0.0), "tau must be > 0, got 0.0"),
        ((torch.ones(3, 3), math.nan), "tau must be > 0, got nan"),
        ((torch.ones(3, 3), 1.0, "lapack"), "backend must be one of"),
    ],
)
def test_bad_arguments_are_named(arguments: tuple[object, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        clip_singular_values(*arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize("shape", [(1, 2**22), (2, 2**21)])
def test_long_rows_keep_their_norm(shape: tuple[int, int]) -> None:
    """τ between σ_max and what a float32 sum over the row would make of it."""
    matrix = torch.full(shape, 0.01)
    sigma = 0.01 * math.sqrt(matrix.numel())
    clipped, found = clip_singular_values(matrix, sigma * 0.9999)
    assert float(found) == pytest.approx(sigma, rel=1e-6)
    assert float(clipped[0, 0]) == pytest.approx(0.01 * 0.9999, rel=1e-6)
    assert torch.equal(clip_singular_values(matrix, sigma * 1.0001)[0], matrix)
