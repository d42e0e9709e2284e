"""Spectral clipping of many small matrices, float64: SVDs only where nothing cheaper proves the result.

The package's kernels are made for single layers; here thousands of 16 × 16 matrices a step are nearly all below the
threshold, or have one value above it.
"""

from __future__ import annotations

import numpy as np
import torch

from clipbench.studies.descent import norms

ITERATIONS = 12
GRAM = 100.0  # largest ‖G‖_F²/τ² of the way by GᵀG: its error is about that times the machine's
CONVERGED = 1e-14  # relative residual of the largest pair


def clip_spectrum(gradients: np.ndarray, thresholds: np.ndarray) -> None:
    """U min(S, τ) Vᵀ in place; gradients (C, S, n²), thresholds (C,).

    ‖G‖_F ≤ τ: nothing to do. ‖G‖_F² − σ₁² ≤ τ²: σ₁ alone is above, and G − (σ₁ − τ) u vᵀ is the clip. Else the
    eigenvalues of GᵀG, which take half the time of an SVD; an SVD where ‖G‖_F > 10 τ, so that squares lose digits.
    """
    side = round(gradients.shape[-1] ** 0.5)
    frobenius = norms(gradients)
    where = np.nonzero(frobenius > thresholds[:, None])
    finite = np.isfinite(frobenius[where])
    where = (where[0][finite], where[1][finite])
    if not len(where[0]):
        return
    matrices = gradients[where].reshape(-1, side, side)
    tau, square = thresholds[where[0]], frobenius[where] ** 2
    alone, vector, image, largest = _largest_pair(matrices, tau, square)
    factor = np.where(alone & (largest > tau), 1 - tau / largest, 0.0)
    clipped = matrices - (factor[:, None] * image)[:, :, None] * vector[:, None, :]
    for several, method in (
        (~alone & (square <= GRAM * tau**2), _by_gram),
        (~alone & (square > GRAM * tau**2), _by_svd),
    ):
        if several.any():
            clipped[several] = method(matrices[several], tau[several])
    gradients[where] = clipped.reshape(len(tau), -1)


def _largest_pair(
    matrices: np.ndarray, tau: np.ndarray, square: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Whether σ₁ is found and proven the only one above τ; v, G v and σ₁, by power iteration from the longest row."""
    longest = np.einsum("mij,mij->mi", matrices, matrices).argmax(axis=1)
    vector = matrices[np.arange(len(matrices)), longest]
    vector = vector / norms(vector)[:, None]
    for _ in range(ITERATIONS):
        image = (matrices @ vector[:, :, None])[..., 0]
        back = (image[:, None, :] @ matrices)[:, 0]
        vector = back / norms(back)[:, None]
    image = (matrices @ vector[:, :, None])[..., 0]
    largest = norms(image)
    residual = norms((image[:, None, :] @ matrices)[:, 0] - (largest**2)[:, None] * vector)
    # The residual bounds what rounding and a slow iteration leave; the rest is below τ with a margin for rounding.
    alone = (residual <= CONVERGED * 16 * largest**2) & (square * (1 + 1e-12) - largest**2 <= tau**2)
    return alone, vector, image, largest


def _by_gram(matrices: np.ndarray, tau: np.ndarray) -> np.ndarray:
    """G − G V max(0, 1 − τ/√λ) Vᵀ, λ and V of GᵀG."""
    given = torch.from_numpy(matrices)
    values, vectors = torch.linalg.eigh(given.mT @ given)
    bound = torch.from_numpy(tau)[:, None]
    excess = 1 - bound / torch.maximum(values.clamp_min(0.0).sqrt(), bound)
    return np.asarray((given - ((given @ vectors) * excess[:, None, :]) @ vectors.mT).numpy())


def _by_svd(matrices: np.ndarray, tau: np.ndarray) -> np.ndarray:
    left, sigma, right = torch.linalg.svd(torch.from_numpy(matrices))
    bound = torch.minimum(sigma, torch.from_numpy(tau)[:, None])
    return np.asarray(((left * bound[:, None, :]) @ right).numpy())
