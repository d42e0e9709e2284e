"""Naive twins of the rates' descents: one seed, one setting, one step and one sample at a time."""

from __future__ import annotations

import math

import numpy as np


def gradient(problem: str, x: np.ndarray) -> np.ndarray:
    if problem == "valley":
        return np.array([v / math.sqrt(1 + v * v) + 0.75 * math.sin(3 * v) for v in x.ravel()]).reshape(x.shape)
    if problem == "well":
        return np.array([v - 4 * v / (1 + v * v) ** 2 for v in x.ravel()]).reshape(x.shape)
    return np.array([v + 3 * math.sin(2 * v) for v in x.ravel()]).reshape(x.shape)


def shrink(vector: np.ndarray, tau: float) -> np.ndarray:
    norm = math.sqrt((vector**2).sum())
    return vector * min(1.0, tau / norm)


def vectors(
    problem: str, method: str, start: np.ndarray, noise: np.ndarray, rate: float, tau: float, power: float
) -> float:
    """The average gradient norm; noise (T, n, d)."""
    x, total = start.copy(), 0.0
    for batch in noise:
        mean = gradient(problem, x)
        total += math.sqrt((mean**2).sum())
        samples = [mean + each for each in batch]
        if method == "ps_clip":
            samples = [shrink(g, tau * k ** (1 / power)) for k, g in enumerate(samples, start=1)]
        estimate = sum(samples) / len(samples)
        if method == "normalised":
            estimate = estimate / math.sqrt((estimate**2).sum())
        if method == "norm_clip":
            estimate = shrink(estimate, tau)
        x = x - rate * estimate
    return total / len(noise)


def spectral(matrix: np.ndarray, tau: float) -> np.ndarray:
    left, sigma, right = np.linalg.svd(matrix)
    return left @ np.diag(np.minimum(sigma, tau)) @ right


def matrices(problem: str, start: np.ndarray, noise: np.ndarray, rate: float, tau: float) -> float:
    """The average Frobenius norm under spectral clipping; start (n, n), noise (T, n, n)."""
    x, total = start.copy(), 0.0
    for each in noise:
        mean = gradient(problem, x)
        total += math.sqrt((mean**2).sum())
        x = x - rate * spectral(mean + each, tau)
    return total / len(noise)
