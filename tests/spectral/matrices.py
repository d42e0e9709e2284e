"""Matrices with a spectrum one can choose, and the error the tests speak of."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def with_spectrum(sigma: np.ndarray, rows: int, columns: int, seed: int = 0) -> Tensor:
    """A float32 (rows, columns) matrix with these singular values and random singular vectors."""
    random = np.random.default_rng(seed)
    left = torch.linalg.qr(torch.from_numpy(random.standard_normal((rows, len(sigma))))).Q
    right = torch.linalg.qr(torch.from_numpy(random.standard_normal((columns, len(sigma))))).Q
    return ((left * torch.from_numpy(sigma)) @ right.mT).float()


def flat(n: int, outliers: int = 3) -> np.ndarray:
    """A bulk between 0.5 and 1, and outliers up to 30 over it."""
    sigma = np.linspace(1.0, 0.5, n)
    sigma[:outliers] = np.geomspace(30.0, 3.0, outliers)
    return sigma


def power_law(n: int) -> np.ndarray:
    """1/i."""
    return 1.0 / np.arange(1, n + 1)


def noise(rows: int, columns: int, seed: int = 0) -> Tensor:
    """Gaussian entries: no gap anywhere in the spectrum."""
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def error(found: Tensor, expected: np.ndarray) -> float:
    """‖found − expected‖_F / ‖expected‖_F, 0 where both are zero."""
    difference = np.linalg.norm(found.double().numpy() - expected)
    return float(difference / max(np.linalg.norm(expected), np.finfo(float).tiny)) if difference else 0.0
