"""Naive twins of spectral clipping: float64, one full SVD, nothing of the package."""

from __future__ import annotations

import numpy as np
import torch


def _double(matrix: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.array(matrix, dtype=np.float64))


def clip(matrix: np.ndarray, tau: float) -> np.ndarray:
    """U diag(min(s, τ)) Vᵀ."""
    left, sigma, right = torch.linalg.svd(_double(matrix), full_matrices=False)
    return ((left * torch.minimum(sigma, torch.tensor(tau, dtype=torch.float64))) @ right).numpy()


def soft_clip(matrix: np.ndarray, level: float) -> np.ndarray:
    """U diag(s / √(1 + s²/c²)) Vᵀ."""
    left, sigma, right = torch.linalg.svd(_double(matrix), full_matrices=False)
    return ((left * (sigma / torch.sqrt(1 + (sigma / level) ** 2))) @ right).numpy()


def values(matrix: np.ndarray) -> np.ndarray:
    """All singular values, largest first."""
    return torch.linalg.svdvals(_double(matrix)).numpy()


def sigma_max(matrix: np.ndarray) -> float:
    """The largest singular value."""
    return float(values(matrix)[0])


def truncated_clip(matrix: np.ndarray, tau: float, rank: int, iterations: int, omega: np.ndarray) -> np.ndarray:
    """G + U_r diag(min(s, τ) − s) V_rᵀ by Halko, Martinsson, Tropp, algorithms 4.4 and 5.1; omega (m, r + p)."""
    double = _double(matrix)
    basis = torch.linalg.qr(double @ _double(omega))[0]
    for _ in range(iterations):
        basis = torch.linalg.qr(double @ torch.linalg.qr(double.T @ basis)[0])[0]
    left, sigma, right = torch.linalg.svd(basis.T @ double, full_matrices=False)
    left, sigma, right = (basis @ left)[:, :rank], sigma[:rank], right[:rank]
    return (double + (left * (torch.minimum(sigma, torch.tensor(tau, dtype=torch.float64)) - sigma)) @ right).numpy()
