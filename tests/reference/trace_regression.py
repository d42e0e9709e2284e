"""Naive twin of the trace regression: one seed, one rule, one step at a time, every clip by its own SVD."""

from __future__ import annotations

import numpy as np


def spectral_clip(gradient: np.ndarray, tau: float) -> np.ndarray:
    left, sigma, right = np.linalg.svd(gradient)
    return left @ np.diag(np.minimum(sigma, tau)) @ right


def norm_clip(gradient: np.ndarray, tau: float) -> np.ndarray:
    norm = np.sqrt((gradient**2).sum())
    return gradient if norm <= tau else gradient * (tau / norm)


def threshold(rule: object, history: list[float]) -> float:
    """τ of the coming step from the sizes of all past gradients."""
    if rule == "none":
        return np.inf
    if rule == "ema":
        total = 0.0
        for t, size in enumerate(reversed(history)):
            total += 0.1 * 0.9**t * (size + 1e-8)
        return total / (1 - 0.9 ** len(history)) if history else 0.0
    if rule == "quantile":
        return float(np.quantile(history[-100:], 0.85)) if history else np.inf
    return float(rule)


def run(
    matrices: np.ndarray, targets: np.ndarray, chosen: np.ndarray, fresh: np.ndarray, rule: object, norm: bool
) -> np.ndarray:
    """Cumulative means over steps of δ, bias² and variance, and F: (steps, 4).

    matrices (N, n, n), targets (N,), chosen (steps,), fresh (steps, draws): the samples' numbers.
    """
    n = matrices.shape[1]
    rate = 0.5 / (2 * np.mean([(a**2).sum() for a in matrices]))
    clip = norm_clip if norm else spectral_clip
    x, history, found, sums = np.zeros((n, n)), [], [], np.zeros(3)
    for k, i in enumerate(chosen):
        tau = threshold(rule, history)
        gradients = [2 * ((a * x).sum() - b) * a for a, b in zip(matrices, targets, strict=True)]
        full = sum(gradients) / len(gradients)
        clipped = [clip(g, tau) for g in gradients]
        expected = sum(clipped) / len(clipped)
        drawn = sum(clipped[j] for j in fresh[k]) / len(fresh[k])
        sums += [
            ((full - drawn) ** 2).sum(),
            ((full - expected) ** 2).sum(),
            np.mean([((c - expected) ** 2).sum() for c in clipped]),
        ]
        found.append(
            [*(sums / (k + 1)), np.mean([((a * x).sum() - b) ** 2 for a, b in zip(matrices, targets, strict=True)])]
        )
        size = np.sqrt((gradients[i] ** 2).sum()) if norm else np.linalg.svd(gradients[i])[1][0]
        history.append(size)
        x = x - rate * clip(gradients[i], tau)
    return np.array(found)
