"""Naive twins of the estimators of a mean: whole vectors, one at a time."""

from __future__ import annotations

import math

import numpy as np
from scipy.optimize import minimize


def clipped_mean(samples: np.ndarray, thresholds: list[float]) -> np.ndarray:
    """(1/n) Σ_k min(1, τ_k/‖g_k‖) g_k from rows (n, d)."""
    total = np.zeros(samples.shape[1])
    for g, tau in zip(samples, thresholds, strict=True):
        total += g * min(1.0, tau / math.sqrt((g * g).sum()))
    return total / len(samples)


def batch_clip(samples: np.ndarray, tau: float) -> np.ndarray:
    """The mean, scaled to a norm of τ at most."""
    mean = samples.mean(axis=0)
    return mean * min(1.0, tau / math.sqrt((mean * mean).sum()))


def coordinate_median(samples: np.ndarray) -> np.ndarray:
    return np.array([np.median(column) for column in samples.T])


def geometric_median(points: np.ndarray) -> np.ndarray:
    """argmin Σ ‖x − y_j‖ over rows y, by a general minimiser."""

    def distance(x: np.ndarray) -> float:
        return sum(math.sqrt(((x - y) ** 2).sum()) for y in points)

    found = minimize(
        distance,
        points.mean(axis=0),
        method="Nelder-Mead",
        options={"xatol": 1e-9, "fatol": 1e-13, "maxiter": 20000, "maxfev": 20000},
    )
    return found.x
