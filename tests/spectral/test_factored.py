"""Clipping a product from its factors, against an SVD of the product in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from clipbench.spectral import clip_factored
from tests.reference import spectral as reference

BACKENDS = ("exact", "newton_schulz")
SHAPES = [(33, 100, 100), (5, 8, 3), (7, 3, 4), (1, 5, 6), (20, 60, 40)]  # r, n, m
MEMBERS = 5


def factors(kind: str, rows: int, n: int, m: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Activations and output gradients of MEMBERS batches; the kinds are what makes squares of them lose digits."""
    draws = torch.Generator().manual_seed(0)
    a = torch.randn(MEMBERS, rows, n, generator=draws, dtype=torch.float64).to(dtype)
    delta = 0.1 * torch.randn(MEMBERS, rows, m, generator=draws, dtype=torch.float64).to(dtype)
    if kind == "one sample far above":
        delta[:, -1] *= 1e3
    elif kind == "a sample without gradient" and rows > 1:
        delta[:, -1] = 0
    elif kind == "twins" and rows > 1:
        a[:, 1], delta[:, 1] = a[:, 0], delta[:, 0]
    elif kind == "one activation":
        a = a[:, :1].expand_as(a).contiguous()
    elif kind == "uneven rows":
        scale = torch.logspace(-12, 12, rows, dtype=torch.float64).to(dtype)[:, None]
        a, delta = a * scale, delta / scale
    return a, delta


KINDS = [
    "plain", "one sample far above", "a sample without gradient", "twins", "one activation", "uneven rows",
]  # fmt: skip


def products(a: Tensor, delta: Tensor) -> np.ndarray:
    return np.stack([x.double().numpy().T @ y.double().numpy() for x, y in zip(a, delta, strict=True)])


def worst(found: np.ndarray, whole: np.ndarray, tau: np.ndarray) -> tuple[float, float]:
    """The largest relative error, and σ_max/τ − 1, over the members."""
    errors, above = [], []
    for one, product, level in zip(found, whole, tau, strict=True):
        expected = reference.clip(product, level)
        errors.append(float(np.linalg.norm(one - expected) / np.linalg.norm(expected)))
        above.append(reference.sigma_max(one) / level - 1)
    return max(errors), max(above)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", SHAPES)
def test_matches_the_svd_of_the_product(shape: tuple[int, int, int], backend: str, kind: str) -> None:
    a, delta = factors(kind, *shape)
    whole = products(a, delta)
    top = np.array([reference.sigma_max(product) for product in whole])
    for ratio in (0.5, 1.01, 2.0, 10.0, 1e3, 1e5, 1e7):
        tau = torch.from_numpy(top / ratio)
        for measure in (True, False):
            first, second, sigma = clip_factored(a, delta, tau, backend, measure)  # type: ignore[arg-type]
            error, above = worst(products(first, second), whole, tau.numpy())
            assert error <= 1e-5, ratio
            assert above <= 1e-5, ratio
            known = ~sigma.isnan().numpy()
            assert known.all() or (not measure and (top <= tau.numpy())[~known].all())
            assert np.allclose(sigma.numpy()[known], top[known], rtol=2e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_float64_keeps_its_digits(backend: str) -> None:
    for kind in ("plain", "one sample far above", "twins"):
        a, delta = factors(kind, 9, 30, 20, torch.float64)
        whole = products(a, delta)
        for ratio in (1.01, 3.0, 100.0):
            tau = np.array([reference.sigma_max(product) / ratio for product in whole])
            first, second, sigma = clip_factored(a, delta, torch.from_numpy(tau), backend)  # type: ignore[arg-type]
            assert worst(products(first, second), whole, tau)[0] <= 1e-11
            assert sigma.dtype == torch.float64
            assert np.allclose(sigma.numpy(), tau * ratio, rtol=1e-11 if backend == "exact" else 1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("scales", [(1e-30, 1.0), (1e30, 1e30), (1e-25, 1e-15), (1e36, 1e-36), (1e18, 1e18)])
def test_huge_and_tiny_rows(backend: str, scales: tuple[float, float]) -> None:
    a, delta = factors("plain", 12, 9, 7)  # of full rank: no level is below what float64 can tell from zero
    a, delta = a * scales[0], delta * scales[1]
    whole = products(a, delta)
    top = np.array([reference.sigma_max(product) for product in whole])
    for ratio in (3.0, 1e4, 1e20, 1e60):
        tau = np.clip(top / ratio, 1e-36, 1e36)
        first, second, _ = clip_factored(a, delta, torch.from_numpy(tau), backend)  # type: ignore[arg-type]
        error, above = worst(products(first, second) / tau[:, None, None], whole / tau[:, None, None], np.ones(MEMBERS))
        assert above <= 1e-3
        assert error <= 1e-3


def test_every_way_is_taken() -> None:
    """Untouched, of rank one in δ alone, and both factors anew."""
    a, delta = factors("one sample far above", 9, 30, 20)
    values = np.stack([reference.values(product) for product in products(a, delta)])
    levels = [2 * values[0, 0], 1.5 * values[1, 1], 0.3 * values[2, 1], 1e-5 * values[3, 0], math.inf]
    first, second, _ = clip_factored(a, delta, torch.tensor(levels))
    same_a = [torch.equal(x, y) for x, y in zip(first, a, strict=True)]
    same_delta = [torch.equal(x, y) for x, y in zip(second, delta, strict=True)]
    assert same_a == [True, True, False, False, True]
    assert same_delta == [True, False, False, False, True]
    again = clip_factored(a, delta, math.inf)
    assert again[0] is a
    assert again[1] is delta


@pytest.mark.parametrize("backend", BACKENDS)
def test_members_do_not_touch_each_other(backend: str) -> None:
    a, delta = factors("plain", 4, 9, 7)
    clean = clip_factored(a, delta, 0.3, backend)  # type: ignore[arg-type]
    delta[1, 2, 3], a[2, 0, 0] = math.nan, math.inf
    delta[3] = 0
    first, second, sigma = clip_factored(a, delta, 0.3, backend)  # type: ignore[arg-type]
    assert torch.equal(second[1].nan_to_num(7.0), delta[1].nan_to_num(7.0))
    assert torch.equal(first[2], a[2])
    assert sigma.isnan().tolist() == [False, True, True, False, False]
    assert float(sigma[3]) == 0
    assert torch.equal(second[3], delta[3])
    for place in (0, 4):
        expected = clean[0][place].mT @ clean[1][place]
        assert torch.allclose(first[place].mT @ second[place], expected, atol=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_levels_that_are_no_thresholds(backend: str) -> None:
    """Never unclipped, never a division by zero: τ ≤ 0 gives zero, NaN gives NaN."""
    a, delta = factors("plain", 4, 9, 7)
    tau = torch.tensor([0.0, -1.0, math.nan, 0.3, 1e-45])
    first, second, _ = clip_factored(a, delta, tau, backend)  # type: ignore[arg-type]
    found = first.mT @ second
    assert float(found[:2].abs().max()) == 0
    assert bool(found[2].isnan().all())
    assert reference.sigma_max(found[3].numpy()) == pytest.approx(0.3, rel=1e-5)
    assert float(found[4].abs().max()) < 1e-40


def test_leading_dimensions_and_half_precision() -> None:
    a, delta = torch.randn(2, 3, 4, 9), torch.randn(2, 3, 4, 7)
    first, second, sigma = clip_factored(a.bfloat16(), delta.bfloat16(), torch.full((2, 1), 0.5))
    assert first.shape == a.shape
    assert second.shape == delta.shape
    assert sigma.shape == (2, 3)
    assert second.dtype == torch.bfloat16
    top = torch.linalg.matrix_norm(first.double().mT @ second.double(), 2)
    assert float(top.max()) <= 0.5 * 1.01
    assert clip_factored(torch.zeros(0, 4, 9), torch.zeros(0, 4, 7), 1.0)[2].shape == (0,)


def test_the_path_of_accelerators_reads_no_value() -> None:
    with FakeTensorMode():
        for shape in ((4, 9, 7), (9, 4, 7)):
            a, delta = torch.empty(3, shape[0], shape[1]), torch.empty(3, shape[0], shape[2])
            assert clip_factored(a, delta, torch.ones(3), "newton_schulz")[2].shape == (3,)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.ones(3), torch.ones(3), 1.0), "a must be floating with at least two dimensions"),
        ((torch.ones(2, 3), torch.ones(3, 3), 1.0), "delta must be torch.float32 of shape"),
        ((torch.ones(2, 3), torch.ones(2, 3).double(), 1.0), "delta must be torch.float32 of shape"),
        ((torch.ones(2, 3), torch.ones(2, 3), 0.0), "tau must be > 0, got 0.0"),
        ((torch.ones(2, 3), torch.ones(2, 3), 1.0, "lapack"), "backend must be auto, exact or newton_schulz"),
    ],
)
def test_bad_arguments_are_named(arguments: tuple[object, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        clip_factored(*arguments)  # type: ignore[arg-type]
