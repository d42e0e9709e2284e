"""Stochastic descent on small separable problems, for many seeds and settings at once, float64.

    x_{t+1} = x_t − η C(∇F(x_t) + noise_t)         measured: the average over steps of ‖∇F(x_t)‖

Problems act on each coordinate alone:

    valley   ∇F = x/√(1 + x²) + 0.75 sin 3x     bounded; L = 3.25
    quad     ∇F = x + 3 sin 2x                  L = 7
    well     ∇F = x − 4x/(1 + x²)²              L = 3
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch

Blocks = Iterator[np.ndarray]
Rule = Callable[[np.ndarray, np.ndarray], None]


def _sine(x: np.ndarray) -> np.ndarray:
    """sin x by torch, whose float64 sine is twice as fast as numpy's."""
    return torch.sin(torch.from_numpy(x)).numpy()


def valley(x: np.ndarray) -> np.ndarray:
    """∇F of the valley, coordinate by coordinate."""
    found = _sine(3.0 * x)
    found *= 0.75
    found += x / np.sqrt(1.0 + x * x)
    return found


def quad(x: np.ndarray) -> np.ndarray:
    """∇F of the quadratic with ripples, coordinate by coordinate."""
    found = _sine(2.0 * x)
    found *= 3.0
    found += x
    return found


def well(x: np.ndarray) -> np.ndarray:
    """∇F of a double well with its minima at ±1, coordinate by coordinate; four operations, no sine."""
    found = x * x
    found += 1.0
    found *= found
    np.divide(-4.0, found, out=found)
    found += 1.0
    found *= x
    return found


class Problem(NamedTuple):
    """Its gradient and L, the gradient's largest slope."""

    gradient: Callable[[np.ndarray], np.ndarray]
    smoothness: float


PROBLEMS = {"valley": Problem(valley, 3.25), "quad": Problem(quad, 7.0), "well": Problem(well, 3.0)}


class Settings(NamedTuple):
    """C settings side by side, longest first: steps (C,) int, learning rates (C,), thresholds (C,) (∞: none)."""

    steps: np.ndarray
    rates: np.ndarray
    thresholds: np.ndarray


def norms(vectors: np.ndarray) -> np.ndarray:
    """Euclidean norms along the last dimension."""
    return np.sqrt(np.einsum("...d,...d->...", vectors, vectors))


def keep(gradients: np.ndarray, thresholds: np.ndarray) -> None:
    """C(g) = g."""


def normalise(gradients: np.ndarray, thresholds: np.ndarray) -> None:
    """C(g) = g/‖g‖; a zero gradient stays zero."""
    found = norms(gradients)
    gradients /= np.where(found > 0, found, 1.0)[..., None]


def clip_norm(gradients: np.ndarray, thresholds: np.ndarray) -> None:
    """C(g) = min(1, τ/‖g‖) g, in place; gradients (C, S, D), thresholds (C,)."""
    found = norms(gradients)
    gradients *= (thresholds[:, None] / np.maximum(found, thresholds[:, None]))[..., None]


def descend(problem: Problem, start: np.ndarray, settings: Settings, rule: Rule, noise: Blocks) -> np.ndarray:
    """The average gradient norms, (C, S), of descent with one noise vector a step.

    start (D,); `noise` yields blocks (B, S, D) for as many steps as the longest setting has; all settings share it.
    NaN or infinite where a setting diverges.
    """
    longest = int(settings.steps[0])
    t, point, total = 0, np.empty(0), np.empty(0)
    while t < longest:
        block = next(noise)
        if t == 0:
            point = np.tile(start, (len(settings.steps), block.shape[1], 1))
            total = np.zeros(point.shape[:2])
        for each in block[: longest - t]:
            active = int(np.searchsorted(-settings.steps, -t))  # settings with more than t steps come first
            part = point[:active]
            gradient = problem.gradient(part)
            total[:active] += norms(gradient)
            gradient += each
            rule(gradient, settings.thresholds[:active])
            gradient *= settings.rates[:active, None, None]
            part -= gradient
            t += 1
    return total / settings.steps[:, None]


def descend_per_sample(
    problem: Problem, start: np.ndarray, settings: Settings, power: float, samples: int, noise: Blocks
) -> np.ndarray:
    """The same for PS-Clip-SGD, arXiv 2605.02701: (1/n) Σ_k min(1, α k^{1/p}/‖g_k‖) g_k, α = thresholds.

    All settings have the same number of steps and of samples n in a batch; `noise` yields (S, n′, D), parts of a batch
    that never reach over its end, S seeds. ‖m + ν‖² = ‖m‖² + 2⟨m, ν⟩ + ‖ν‖² lets all settings share the noise.
    """
    part = next(noise)
    seeds = part.shape[0]
    point = np.tile(start, (seeds, len(settings.rates), 1))
    total = np.zeros(point.shape[:2])
    for t in range(int(settings.steps[0])):
        mean = problem.gradient(point)
        total += norms(mean)
        squares = np.einsum("scd,scd->sc", mean, mean)
        moved, weight, done = np.zeros_like(mean), np.zeros_like(total), 0
        while done < samples:
            if t or done:
                part = next(noise)
            lengths = part @ mean.swapaxes(1, 2)  # (S, n', C)
            lengths *= 2.0
            lengths += np.einsum("snd,snd->sn", part, part)[:, :, None]
            lengths += squares[:, None, :]
            np.sqrt(np.maximum(lengths, 0.0, out=lengths), out=lengths)
            bound = np.arange(done + 1.0, done + part.shape[1] + 1)[:, None] ** (1 / power) * settings.thresholds
            weights = np.divide(bound, np.maximum(lengths, bound, out=lengths), out=lengths)
            moved += weights.swapaxes(1, 2) @ part
            weight += weights.sum(axis=1)
            done += part.shape[1]
        moved += weight[..., None] * mean
        point -= (settings.rates / samples)[None, :, None] * moved
    return (total / settings.steps).T
