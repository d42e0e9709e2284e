"""The randomized backend: the paper's settings exactly, the adaptive form, and where its draws come from."""

from __future__ import annotations

import importlib

import numpy as np
import pytest
import torch

from clipbench.spectral import randomized_clip
from tests.reference import spectral as reference
from tests.spectral.matrices import error, flat, noise, power_law, with_spectrum

randomized = importlib.import_module("clipbench.spectral.randomized")


def seeded(seed: int = 3) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(("rank", "oversample", "iterations"), [(10, 5, 1), (3, 5, 2), (64, 10, 2)])
def test_the_papers_settings_are_followed_exactly(rank: int, oversample: int, iterations: int) -> None:
    """Against the twin with the same Gaussian matrix: equal to rounding, not only in quality."""
    matrix = with_spectrum(flat(90), 90, 140)
    omega = torch.randn(140, rank + oversample, generator=seeded()).numpy().astype(np.float64)
    expected = reference.truncated_clip(matrix.numpy(), 0.9, rank, iterations, omega)
    clipped, _, basis = randomized_clip(matrix, 0.9, rank, oversample, iterations, generator=seeded())
    assert error(clipped, expected) <= 1e-5
    assert basis is not None
    assert basis.shape == (rank + oversample, 90)


def test_on_a_flat_bulk_the_papers_setting_misses_what_the_adaptive_form_finds() -> None:
    matrix = with_spectrum(flat(192), 192, 400)
    expected = reference.clip(matrix.numpy(), 1.5)
    paper = randomized_clip(matrix, 1.5, 3, 5, 1, generator=seeded())[0]
    adaptive = randomized_clip(matrix, 1.5, generator=seeded())[0]
    assert error(adaptive, expected) <= 1e-3 < error(paper, expected)


def test_where_the_spectrum_is_flat_around_tau_the_adaptive_form_answers_exactly() -> None:
    """Ten values above τ, seven of them within 1.5 % of it: no subspace of sixteen rows tells them from the bulk."""
    sigma = np.linspace(1.0, 0.5, 256)
    sigma[:3] = [30.0, 9.5, 3.0]
    matrix = with_spectrum(sigma, 256, 600)
    expected = reference.clip(matrix.numpy(), float(sigma[10]) * 1.001)
    clipped, _, basis = randomized_clip(matrix, float(sigma[10]) * 1.001, generator=seeded())
    assert basis is None
    assert error(clipped, expected) <= 1e-5


@pytest.mark.parametrize("spread", [40.0, 300.0, 3000.0])
def test_values_far_below_the_largest_are_not_lost(spread: float) -> None:
    """Nine values above τ, the last of them 1/`spread` of the first, and a tail below: a low-rank gradient."""
    sigma = np.concatenate([np.geomspace(1.0, 1 / spread, 9), np.geomspace(0.5 / spread, 1e-3 / spread, 87)])
    matrix = with_spectrum(sigma, 96, 300)
    tau = 0.7 / spread
    for seed in range(5):
        clipped, _, basis = randomized_clip(matrix, tau, generator=seeded(seed))
        assert basis is not None
        assert error(clipped, reference.clip(matrix.numpy(), tau)) <= 1e-3


def test_beyond_what_float32_holds_the_adaptive_form_answers_exactly() -> None:
    sigma = np.concatenate([np.geomspace(1.0, 1e-5, 9), np.full(87, 1e-8)])
    matrix = with_spectrum(sigma, 96, 300)
    vectors = torch.linalg.svd(matrix.double())[0].mT.float()
    for basis in (None, vectors[:16]):
        clipped, _, found = randomized_clip(matrix, 5e-6, basis=basis, generator=seeded())
        assert found is None
        assert error(clipped, reference.clip(matrix.numpy(), 5e-6)) <= 1e-5


def test_the_rank_grows_until_a_value_below_tau_is_found() -> None:
    matrix = with_spectrum(power_law(120), 120, 200)
    clipped, _, basis = randomized_clip(matrix, 1 / 40.5, generator=seeded())
    assert basis is not None
    assert basis.shape[0] > 40
    assert error(clipped, reference.clip(matrix.numpy(), 1 / 40.5)) <= 1e-3


def test_a_warm_start_helps() -> None:
    """One round from the basis of a similar matrix against one round from a sketch."""
    matrix = noise(100, 200) + with_spectrum(flat(100) * 3, 100, 200)
    similar = matrix + 0.05 * noise(100, 200, seed=1)
    expected = reference.clip(similar.numpy(), 20.0)
    basis = randomized_clip(matrix, 20.0, 10, 5, 3, generator=seeded())[2]
    warm = randomized_clip(similar, 20.0, 10, 5, 1, basis=basis, generator=seeded())[0]
    cold = randomized_clip(similar, 20.0, 10, 5, 1, generator=seeded())[0]
    assert error(warm, expected) < error(cold, expected)


def test_the_basis_is_an_ordinary_tensor_that_later_calls_do_not_change() -> None:
    """The kernel runs in inference mode, whose tensors a caller could neither change nor differentiate through."""
    matrix = with_spectrum(power_law(60), 60, 90)
    basis = randomized_clip(matrix, 0.3, generator=seeded())[2]
    assert basis is not None
    assert not basis.is_inference()
    before = basis.clone()
    randomized_clip(matrix, 0.3, basis=basis, generator=seeded())
    assert torch.equal(basis, before)


def test_the_global_generator_is_neither_read_nor_moved() -> None:
    matrix = noise(50, 80)
    torch.manual_seed(0)
    state = torch.get_rng_state()
    first = randomized_clip(matrix, 3.0, 5, 2, 1)[0]
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(99)
    assert torch.equal(randomized_clip(matrix, 3.0, 5, 2, 1)[0], first)
    assert not torch.equal(randomized_clip(matrix, 3.0, 5, 2, 1, generator=seeded(8))[0], first)


def test_bases_of_zero_and_of_non_finite_matrices() -> None:
    assert randomized_clip(torch.zeros(5, 6), 1.0)[2] is None
    clipped, sigma, basis = randomized_clip(torch.full((5, 6), torch.nan), 1.0)
    assert basis is None
    assert bool(sigma.isnan())
    assert bool(clipped.isnan().all())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 0}, "rank must be >= 1"),
        ({"oversample": -1}, "oversample must"),
        ({"iterations": -1}, "iterations must"),
    ],
)
def test_bad_settings_are_named(options: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        randomized_clip(noise(4, 5), 1.0, **options)
    with pytest.raises(ValueError, match="matrix must have two dimensions"):
        randomized_clip(torch.ones(3), 1.0)


@pytest.mark.parametrize("others", [[], [2.0], [3.0, 2.0]])
def test_what_rounding_leaves_of_a_value_far_above_tau_is_taken_off_too(
    others: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    sigma = np.array([9000.0, *others] + [1e-3] * (127 - len(others)))
    matrix = with_spectrum(sigma, 128, 512)
    expected = reference.clip(matrix.numpy(), 1.0)
    assert error(randomized_clip(matrix, 1.0)[0], expected) <= 3e-4
    monkeypatch.setattr(randomized, "STEEP", np.inf)
    assert error(randomized_clip(matrix, 1.0)[0], expected) > 9e-4
