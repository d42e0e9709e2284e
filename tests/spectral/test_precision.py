"""What `exact` promises, on spectra made to go against it: error ≤ 1e-5, and no value left above τ (1 + 1e-5)."""

from __future__ import annotations

import importlib
import math

import numpy as np
import pytest
import torch

from clipbench.spectral import clip_singular_values
from clipbench.spectral.exact import clip_one_
from clipbench.spectral.ritz import Goal, Leading
from tests.reference import spectral as reference
from tests.spectral.matrices import error, flat, power_law, with_spectrum

exact = importlib.import_module("clipbench.spectral.exact")
ritz = importlib.import_module("clipbench.spectral.ritz")


def overshoot(matrix: torch.Tensor, tau: float) -> float:
    """σ_max/τ − 1 of what is left."""
    return float(torch.linalg.svdvals(matrix.double())[0]) / tau - 1


def geometric(n: int, step: float) -> np.ndarray:
    return np.exp(-step * np.arange(1, n + 1))


def clustered(n: int, outliers: list[float], width: float) -> np.ndarray:
    """A bulk within `width` of 1, as flat as a threshold can meet it, and outliers."""
    sigma = np.linspace(1 + width, 1.0, n)
    sigma[: len(outliers)] = outliers
    return sigma


SPECTRA = {
    "geometric": geometric(192, 0.2),
    "slow": geometric(192, 0.02),
    "cluster": clustered(192, [30.0, 4.0], 1e-3),
    "tight cluster": clustered(192, [30.0], 1e-6),
    "flat": flat(192),
    "power law": power_law(192),
    "power law ^ 2": power_law(192) ** 2,
    "low rank": np.concatenate([np.geomspace(1.0, 0.02, 20), np.full(172, 1e-6)]),
    "step": np.concatenate([np.ones(5), np.full(187, 0.05)]),
}


@pytest.mark.parametrize("name", SPECTRA)
@pytest.mark.parametrize("columns", [240, 600])
def test_error_and_bound(name: str, columns: int) -> None:
    sigma = SPECTRA[name]
    matrix = with_spectrum(sigma, len(sigma), columns, seed=3)
    left, found, right = np.linalg.svd(matrix.double().numpy(), full_matrices=False)
    places = [found[k] * f for k in (1, 4, 14, 60) for f in (1.0, 1.0001, 0.97)]
    for tau in [found[0] / 1.0001, found[0] / 1.2, *places]:
        clipped, sigma_max = clip_singular_values(matrix, float(tau), "exact")
        assert error(clipped, (left * np.minimum(found, tau)) @ right) <= 1e-5
        assert overshoot(clipped, float(tau)) <= 1e-5
        assert float(sigma_max) == pytest.approx(found[0], rel=1e-5)


def test_a_value_that_is_hardly_clipped_is_still_measured() -> None:
    sigma = np.linspace(1.0, 0.5, 200)
    sigma[0] = 15.0
    matrix = with_spectrum(sigma, 200, 1600)
    tau = 15.0 / 1.0001
    assert clip_one_(matrix, tau).sigma_max == pytest.approx(15.0, rel=1e-5)
    assert overshoot(matrix, tau) <= 1e-5


def test_of_a_value_that_is_hardly_clipped_little_of_the_residual_counts() -> None:
    found = Leading([64.0, 1.0], [0.08, 0.0], torch.eye(2), 1)
    assert found.error() == pytest.approx(0.01)
    near = found.with_shares(8.0 / 1.5, rest=1.0)
    assert near.error() == pytest.approx(0.01 * math.sqrt(2) * (1 - 1 / 1.5) / (1 - 1 / 64))
    nearer = found.with_shares(8.0 / 1.0001, rest=1.0)
    assert nearer.error() == pytest.approx(0.01 * ritz.FIRST_ORDER)
    assert found.with_shares(1.0, rest=63.9).error() == pytest.approx(0.01), "nothing is known to be far below"


def test_the_error_is_measured_against_tau_where_values_may_lie_just_below() -> None:
    """Of a flat bulk the basis holds little; of a power law it holds nearly all of ‖A‖_F."""
    for sigma, isolated in ((flat(128), False), (power_law(128), True)):
        squares, count = sigma**2, 32
        tau = 1.01 * sigma[10]
        found = Leading(squares[:count].tolist(), [0.0] * count, torch.eye(128)[:count], 10)
        goal = Goal(float(tau), float(np.linalg.norm(sigma)), 8e-6, float(np.linalg.norm(squares)))
        assert (goal.residual(found) > goal.overshoot) == isolated
        assert goal._replace(total=math.inf).residual(found) <= goal.overshoot, "not known: taken as possible"


@pytest.mark.parametrize("rows", [8, 64, 90])
def test_small_layers_near_the_norm_take_one_eigendecomposition_in_float32(
    rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    inner = torch.linalg.eigh
    monkeypatch.setattr(torch.linalg, "eigh", lambda matrix: seen.append(matrix.dtype) or inner(matrix))
    matrix = with_spectrum(power_law(rows), rows, 200)
    expected = reference.clip(matrix.numpy(), 0.4)
    assert clip_one_(matrix, 0.4).count_above == 2
    assert error(matrix, expected) <= 1e-6
    assert seen == [torch.float32]


@pytest.mark.parametrize("ratio", [60.0, 200.0, 1000.0, 9000.0])
def test_many_above_beyond_what_float32_holds(ratio: float) -> None:
    """The product with G is in float32 where ‖C‖_F is comparable to ‖G‖_F, else in float64."""
    for sigma in (power_law(128), flat(128), geometric(128, 0.05)):
        matrix = with_spectrum(sigma, 128, 400)
        tau = float(torch.linalg.svdvals(matrix.double())[0]) / ratio
        expected = reference.clip(matrix.numpy(), tau)
        clip_one_(matrix, tau)
        assert error(matrix, expected) <= 1e-5
        assert overshoot(matrix, tau) <= 1e-5


def test_a_float32_product_where_the_clipped_matrix_is_small_loses_its_digits(monkeypatch: pytest.MonkeyPatch) -> None:
    matrix = with_spectrum(power_law(128) ** 2, 128, 400)
    tau, kept = 1.0 / 9000, matrix.clone()
    expected = reference.clip(matrix.numpy(), tau)
    clip_one_(kept, tau)
    assert error(kept, expected) <= 1e-6
    monkeypatch.setattr(exact, "COMPARABLE", math.inf)
    clip_one_(matrix, tau)
    assert error(matrix, expected) > 1e-5
