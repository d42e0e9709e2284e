"""The backend of GPUs, on a CPU: free of synchronisation, and its polynomials."""

from __future__ import annotations

import importlib

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from clipbench.spectral import clip_matrices_, clip_singular_values, newton_schulz, soft_matrices_
from clipbench.spectral.newton_schulz import SigmaBounds, newton_schulz_
from clipbench.spectral.polynomials import best_quintic, resolved, sign_polynomials
from tests.reference import spectral as reference
from tests.spectral.matrices import flat, noise, with_spectrum


def test_no_value_is_read_by_the_host() -> None:
    """Every operation that would wait for a GPU raises on fake tensors, which have no values."""
    with FakeTensorMode():
        for shape in ((12, 30), (30, 12)):
            matrices = [torch.empty(shape) for _ in range(3)]
            report = newton_schulz_(matrices, torch.ones(3))
            assert report.sigma_max.shape == (3,)
            soft_matrices_(matrices, torch.ones(3), "newton_schulz")
            clip_singular_values(torch.empty(2, *shape), torch.ones(2), "newton_schulz")


def test_a_backend_that_reads_values_fails_that_test() -> None:
    with FakeTensorMode(), pytest.raises(DataDependentOutputException):
        clip_matrices_([torch.empty(12, 30)], torch.ones(1), "exact")


@pytest.mark.parametrize("low", [1e-6, 1e-3, 0.1, 0.9, 0.9999])
def test_the_best_quintic_stays_within_its_error_and_touches_it(low: float) -> None:
    (a, b, c), bound = best_quintic(low, 1.0)
    x = np.linspace(low, 1.0, 20001)
    deviation = np.abs(1 - (a * x + b * x**3 + c * x**5))
    assert deviation.max() <= bound * (1 + 1e-6) + 1e-15
    if low < 0.99:  # equioscillation: the bound is met at four points
        assert deviation.max() >= bound * (1 - 1e-6)


@pytest.mark.parametrize("iterations", [4, 8, 12])
def test_the_composition_brings_the_interval_to_one(iterations: int) -> None:
    low = resolved(iterations, 1e-7, 1e-3)
    polynomials, error = sign_polynomials(low, iterations, 1e-3)
    x = np.geomspace(low, 1.0, 20001)
    for a, b, c in polynomials:
        x = a * x + b * x**3 + c * x**5
        assert x.min() > 0
    assert np.abs(1 - x).max() <= error * (1 + 1e-6) + 1e-15 <= 1.1e-7


def test_large_values_are_never_sent_back_to_small_ones() -> None:
    """What makes the unconstrained composition useless in float32: values near 1 pass through values near l."""
    polynomials, _ = sign_polynomials(1e-7, 13, 1e-3)
    x = np.linspace(0.3, 1.0, 2001)
    for a, b, c in polynomials:
        x = a * x + b * x**3 + c * x**5
        assert x.min() > 0.3


def test_sigma_max_from_both_sides() -> None:
    for matrix in (with_spectrum(flat(60), 60, 90), noise(60, 90)):
        scaled = matrix / matrix.abs().max()
        bounds = SigmaBounds(scaled[None])
        top = reference.sigma_max(scaled.numpy())
        assert top * (1 - 2e-4) <= float(bounds.sigma) <= top * (1 + 1e-6)
        assert top * (1 - 1e-6) <= float(bounds.bound) <= top * (1 + 4e-4)


def test_the_count_above_the_threshold() -> None:
    matrix = with_spectrum(flat(60, outliers=4), 60, 90)
    report = newton_schulz(matrix[None], torch.tensor([2.0]))[1]
    assert report.count_above.tolist() == [4]


@pytest.mark.parametrize("allowed", [True, False])
def test_tf32_is_off_inside_and_put_back(allowed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module("clipbench.spectral.newton_schulz")
    inner, seen = module.newton_schulz, []

    def watched(*arguments: object) -> object:
        seen.append(torch.backends.cuda.matmul.allow_tf32)
        return inner(*arguments)

    monkeypatch.setattr(module, "newton_schulz", watched)
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = allowed
    try:
        clip_singular_values(noise(5, 6), 1.0, "newton_schulz")
        assert torch.backends.cuda.matmul.allow_tf32 == allowed
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
    assert seen == [False]


def test_too_few_iterations_are_refused() -> None:
    with pytest.raises(ValueError, match="iterations must be >= 3, got 2"):
        newton_schulz(noise(4, 4)[None], torch.ones(1), 2)


@pytest.mark.gpu
def test_a_cuda_step_does_not_synchronise() -> None:
    stack = torch.randn(4, 96, 200, device="cuda")
    tau = torch.full((4,), 3.0, device="cuda")
    newton_schulz(stack, tau)
    torch.cuda.set_sync_debug_mode("error")
    try:
        clipped, _ = newton_schulz(stack, tau)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    expected = np.stack([reference.clip(matrix, 3.0) for matrix in stack.cpu().numpy()])
    assert np.linalg.norm(clipped.cpu().numpy() - expected) <= 2e-5 * np.linalg.norm(expected)
