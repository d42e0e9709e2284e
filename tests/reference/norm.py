"""Naive twins of norm and value clipping: numpy, float64, one list of arrays."""

from __future__ import annotations

import numpy as np


def total_norm(gradients: list[np.ndarray]) -> float:
    """The norm over all gradients together."""
    return float(np.sqrt(sum(np.sum(np.square(np.asarray(g, dtype=np.float64))) for g in gradients)))


def norm_clip(gradients: list[np.ndarray], tau: float) -> list[np.ndarray]:
    """Every gradient times min(1, τ / norm)."""
    norm = total_norm(gradients)
    factor = 1.0 if norm <= tau else tau / norm
    return [np.asarray(g, dtype=np.float64) * factor for g in gradients]


def per_tensor_norm(gradients: list[np.ndarray], tau: float) -> list[np.ndarray]:
    """Every gradient times min(1, τ / its own norm)."""
    return [norm_clip([gradient], tau)[0] for gradient in gradients]


def value_clip(gradients: list[np.ndarray], tau: float) -> list[np.ndarray]:
    """Every entry into [−τ, τ]."""
    return [np.minimum(np.maximum(np.asarray(g, dtype=np.float64), -tau), tau) for g in gradients]
