"""All backends against a float64 SVD, over spectra, ratios σ_max/τ and shapes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from clipbench.spectral import clip_singular_values, newton_schulz
from tests.reference import spectral as reference
from tests.spectral.matrices import error, flat, noise, power_law, with_spectrum

RATIOS = (1.01, 1.5, 3.0, 10.0, 30.0, 100.0, 1e3, 1e4)
SPECTRA = {
    "flat bulk": lambda: with_spectrum(flat(96), 96, 200),
    "power law": lambda: with_spectrum(power_law(96), 96, 200),
    "noise": lambda: noise(96, 200),
    "tall": lambda: with_spectrum(flat(96), 200, 96),
}
# Bound of each backend's error as a function of σ_max/τ, where it is meant to be used.
BOUNDS = {
    "svd": lambda ratio: 1e-7,
    "exact": lambda ratio: 1e-5,
    "newton_schulz": lambda ratio: 1e-7,
}


@pytest.mark.parametrize("name", SPECTRA)
@pytest.mark.parametrize("backend", BOUNDS)
def test_matches_the_float64_svd(name: str, backend: str) -> None:
    matrix = SPECTRA[name]()
    top = reference.sigma_max(matrix.numpy())
    for ratio in RATIOS:
        clipped, sigma = clip_singular_values(matrix, top / ratio, backend)  # type: ignore[arg-type]
        assert error(clipped, reference.clip(matrix.numpy(), top / ratio)) <= BOUNDS[backend](ratio), ratio
        assert float(sigma) == pytest.approx(top, rel=1e-5)
        if backend != "newton_schulz":
            assert reference.sigma_max(clipped.numpy()) <= top / ratio * (1 + 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(384, 1728), (256, 3456), (768, 3072)])
@pytest.mark.parametrize("spectrum", [flat, power_law])
def test_exact_at_the_sizes_of_real_layers(shape: tuple[int, int], spectrum: object) -> None:
    matrix = with_spectrum(spectrum(shape[0]), *shape)  # type: ignore[operator]
    left, sigma, right = (part.numpy() for part in torch.linalg.svd(matrix.double(), full_matrices=False))
    for ratio in RATIOS:
        clipped, top = clip_singular_values(matrix, sigma[0] / ratio, "exact")
        assert error(clipped, (left * np.minimum(sigma, sigma[0] / ratio)) @ right) <= 1e-5, ratio
        assert float(top) == pytest.approx(sigma[0], rel=1e-5)


@pytest.mark.parametrize("count", [0, 1, 6, 19, 64, 127])
def test_exact_at_every_number_of_values_above(count: int) -> None:
    """τ in the middle of a bulk without gaps, where an iteration is slowest to tell values apart."""
    matrix = noise(128, 400, seed=1)
    sigma = reference.values(matrix.numpy())
    tau = float(sigma[0] * 1.001 if count == 0 else (sigma[count - 1] + sigma[count]) / 2)
    clipped, _ = clip_singular_values(matrix, tau, "exact")
    assert error(clipped, reference.clip(matrix.numpy(), tau)) <= 1e-5


def low_rank(n: int) -> np.ndarray:
    """Eight values and nothing but rounding below: the gradient of a small batch."""
    return np.concatenate([np.geomspace(30.0, 0.01, 8), np.full(n - 8, 1e-9)])


@pytest.mark.parametrize("spectrum", [flat, power_law, low_rank])
def test_exact_with_a_twentieth_of_the_values_above(spectrum: object) -> None:
    """A layer's size, as many values above τ as within σ_max/τ ≤ 30: error, and σ_max of the result."""
    matrix = with_spectrum(spectrum(384), 384, 1728)  # type: ignore[operator]
    sigma = reference.values(matrix.numpy())
    tau = float(max(sigma[19] * 1.001, sigma[0] / 30))
    clipped, _ = clip_singular_values(matrix, tau, "exact")
    assert error(clipped, reference.clip(matrix.numpy(), tau)) <= 1e-5
    assert reference.sigma_max(clipped.numpy()) <= tau * (1 + 1e-5)


@pytest.mark.parametrize("scale", [3e-9, 1e-8, 1e-6])
def test_exact_of_small_gradients(scale: float) -> None:
    """Residuals are some 1e-8 ‖G‖_F²: float32 has no squares of those where ‖G‖_F is 1e-8."""
    matrix = with_spectrum(scale * power_law(256) ** 2, 256, 512)
    clipped, sigma_max = clip_singular_values(matrix, scale / 30, "exact")
    assert error(clipped, reference.clip(matrix.numpy(), scale / 30)) <= 1e-5
    assert float(sigma_max) == pytest.approx(scale, rel=1e-5)


@pytest.mark.parametrize("ratio", [1e4, 2.9e4, 9e4])
def test_exact_leaves_nothing_above_tau_where_the_largest_value_is_far_above(ratio: float) -> None:
    """All values but one hardly above τ, where rounding in the Gram matrix, eps σ_max², is largest."""
    sigma = np.full(256, 1.001 / ratio)
    sigma[0] = 1.0
    matrix = with_spectrum(sigma, 256, 512)
    clipped, _ = clip_singular_values(matrix, 1 / ratio, "exact")
    assert error(clipped, reference.clip(matrix.numpy(), 1 / ratio)) <= 1e-5
    assert reference.sigma_max(clipped.numpy()) <= (1 + 1e-5) / ratio


@pytest.mark.parametrize("spectrum", [flat, power_law])
def test_randomized_to_a_thousandth_with_ten_values_above(spectrum: object) -> None:
    matrix = with_spectrum(spectrum(192), 192, 500)  # type: ignore[operator]
    sigma = reference.values(matrix.numpy())
    for count in (1, 3, 10) if spectrum is power_law else (1, 3):
        tau = float(sigma[count] * 1.01)
        clipped, _ = clip_singular_values(matrix, tau, "randomized")
        assert error(clipped, reference.clip(matrix.numpy(), tau)) <= 1e-3


@pytest.mark.parametrize(
    ("iterations", "dtype", "bound"),
    [(6, torch.float32, 0.6), (8, torch.float32, 1e-3), (10, torch.float32, 2e-5), (18, torch.float64, 1e-7)],
)
def test_newton_schulz_error_falls_with_the_iterations(iterations: int, dtype: torch.dtype, bound: float) -> None:
    matrix = SPECTRA["power law"]()
    tau = reference.sigma_max(matrix.numpy()) / 100
    clipped = newton_schulz(matrix[None], torch.tensor([tau]), iterations, dtype)[0][0]
    assert error(clipped, reference.clip(matrix.numpy(), tau)) <= bound
    assert reference.sigma_max(clipped.numpy()) <= tau * 1.25


def test_newton_schulz_with_products_in_bfloat16() -> None:
    for matrix in (with_spectrum(flat(32), 32, 48), with_spectrum(power_law(32), 32, 48), noise(32, 48)):
        tau = reference.sigma_max(matrix.numpy()) / 3
        clipped = newton_schulz(matrix[None], torch.tensor([tau]), 6, torch.bfloat16)[0][0]
        assert error(clipped, reference.clip(matrix.numpy(), tau)) <= 5e-2


def test_float64_keeps_its_digits() -> None:
    matrix = noise(80, 200).double()
    tau = reference.sigma_max(matrix.numpy()) / 1.3
    assert error(clip_singular_values(matrix, tau, "exact")[0], reference.clip(matrix.numpy(), tau)) <= 1e-9


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("backend", ["svd", "exact", "randomized", "newton_schulz"])
def test_half_precision_is_clipped_in_float32_and_rounded_once(dtype: torch.dtype, backend: str) -> None:
    matrix = with_spectrum(flat(80), 80, 120).to(dtype)
    clipped, _ = clip_singular_values(matrix, 2.0, backend)  # type: ignore[arg-type]
    expected = reference.clip(matrix.double().numpy(), 2.0)
    assert clipped.dtype == dtype
    assert error(clipped, expected) <= 2 * torch.finfo(dtype).eps


def test_a_stack_equals_its_matrices_one_by_one() -> None:
    stack = torch.stack([noise(20, 30, seed) for seed in range(6)]).reshape(2, 3, 20, 30)
    tau = torch.linspace(2.0, 12.0, 6).reshape(2, 3)
    for backend in ("svd", "exact", "newton_schulz", "randomized"):
        clipped, sigma = clip_singular_values(stack, tau, backend)  # type: ignore[arg-type]
        assert clipped.shape == stack.shape
        assert sigma.shape == (2, 3)
        for i in range(2):
            for j in range(3):
                one: Tensor = clip_singular_values(stack[i, j], float(tau[i, j]), backend)[0]  # type: ignore[arg-type]
                assert torch.allclose(clipped[i, j], one, atol=1e-2 if backend == "randomized" else 1e-5)
