"""Soft spectral clipping against its twin."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from clipbench.spectral import Backend, soft_matrices_
from tests.reference import spectral as reference
from tests.spectral.matrices import error, flat, noise, power_law, with_spectrum

BACKENDS: tuple[Backend, ...] = ("exact", "newton_schulz")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("ratio", [0.1, 1.0, 10.0, 1e3])
def test_matches_the_twin(backend: Backend, ratio: float) -> None:
    for matrix in (with_spectrum(flat(60), 60, 90), with_spectrum(power_law(60), 90, 60), noise(60, 90)):
        top = reference.sigma_max(matrix.numpy())
        expected = reference.soft_clip(matrix.numpy(), top / ratio)
        found = matrix.clone()
        report = soft_matrices_([found], torch.tensor([top / ratio]), backend)
        assert error(found, expected) <= (1e-7 if backend == "exact" else max(1e-5, 2e-7 * ratio))
        assert float(report.sigma_max) == pytest.approx(top, rel=5e-4)


@pytest.mark.parametrize("backend", BACKENDS)
def test_infinite_level_zero_and_non_finite(backend: Backend) -> None:
    matrices = [noise(8, 9), torch.zeros(8, 9), torch.full((8, 9), math.nan), noise(8, 9)]
    before = [matrix.clone() for matrix in matrices]
    level = torch.tensor([math.inf, 1.0, 1.0, 1.0])
    report = soft_matrices_(matrices, level, backend)
    assert torch.equal(matrices[0], before[0])
    assert torch.equal(matrices[1], before[1])
    assert bool(matrices[2].isnan().all())
    assert report.left.tolist() == [False, False, True, False]
    assert np.linalg.norm(matrices[3].numpy(), 2) < 1.0
