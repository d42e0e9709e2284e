"""Errors of clipped means of g_k = μ + ξ_k u + z_k, drawn with five numbers a sample whatever the dimension d.

ξ is heavy-tailed, u a unit vector, z Gaussian and isotropic. A sample's weight min(1, τ_k/‖g_k‖) depends on its two
coordinates in the plane of u and μ and on the length of the rest, an isotropic Gaussian vector of m = d − 2 entries.
So, for the sum S of the weighted rests, let a_k be the k-th rest's coordinate along S_{k−1}, which is N(0, s²)
whatever came before, and let r_k² ~ s² χ²(m − 1) be what is left:

    ‖S_k‖² = (‖S_{k−1}‖ + w_k a_k)² + w_k² r_k²          ‖g_k‖² = (in the plane) + a_k² + r_k²

This is exact for one estimator at a time: every estimator has its own S, so that several of them may share the
numbers, but only each one's own distribution means anything, not how they vary together.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from clipbench.studies import heavy_tails


class Draws(NamedTuple):
    """R batches of n samples, each (n, R): noise along u and along the plane's second axis, a_k, r_k²."""

    along: np.ndarray
    across: np.ndarray
    axial: np.ndarray
    rest: np.ndarray


class Noise(NamedTuple):
    """ξ by its kind and tail index, the Gaussian's standard deviation s in each of d coordinates."""

    kind: str
    tail_index: float
    std: float
    dimension: int

    def draw(self, samples: int, repetitions: int, generator: np.random.Generator) -> Draws:
        """R batches of n samples."""
        shape = (samples, repetitions)
        along = heavy_tails.SAMPLERS[self.kind](shape, self.tail_index, generator)
        along += self.std * generator.standard_normal(shape)
        across = self.std * generator.standard_normal(shape)
        axial = self.std * generator.standard_normal(shape)
        rest = 2 * self.std**2 * generator.standard_gamma((self.dimension - 3) / 2, shape)
        return Draws(along, across, axial, rest)


def lengths(draws: Draws, mean: tuple[float, float]) -> np.ndarray:
    """‖g_k‖, (n, R), for a mean with these coordinates along u and across it."""
    plane = (draws.along + mean[0]) ** 2 + (draws.across + mean[1]) ** 2
    return np.sqrt(plane + draws.axial**2 + draws.rest)


class Sums(NamedTuple):
    """Of the first n samples, n in `sizes`: the mean's coordinates in the plane and the length of its rest, (n, R)."""

    along: np.ndarray
    across: np.ndarray
    rest: np.ndarray

    def errors(self, mean: tuple[float, float]) -> np.ndarray:
        """‖ĝ − μ‖."""
        return np.sqrt((self.along - mean[0]) ** 2 + (self.across - mean[1]) ** 2 + self.rest**2)

    def clipped(self, threshold: float) -> Sums:
        """The same estimates, each scaled to a norm of `threshold` at most."""
        norms = np.sqrt(self.along**2 + self.across**2 + self.rest**2)
        factor = np.minimum(1.0, threshold / norms)
        return Sums(*(factor * part for part in self))


def weighted_means(draws: Draws, mean: tuple[float, float], weights: np.ndarray | None, sizes: np.ndarray) -> Sums:
    """(1/n) Σ_{k ≤ n} w_k g_k for every n in `sizes` (ascending, the last one all samples); weights (n, R), None: 1."""
    w = 1.0 if weights is None else weights
    starts = np.concatenate([[0], sizes[:-1]])

    def prefixes(values: np.ndarray) -> np.ndarray:
        return np.add.reduceat(values, starts, axis=0).cumsum(axis=0) / sizes[:, None]

    along, across = prefixes(w * (draws.along + mean[0])), prefixes(w * (draws.across + mean[1]))
    axial, squares = w * draws.axial, np.square(w) * draws.rest
    length = np.zeros(draws.axial.shape[1])
    found, wanted = np.empty((len(sizes), len(length))), {int(n): i for i, n in enumerate(sizes)}
    for k in range(len(axial)):
        length += axial[k]
        np.square(length, out=length)
        length += squares[k]
        np.sqrt(length, out=length)
        if k + 1 in wanted:
            found[wanted[k + 1]] = length / (k + 1)
    return Sums(along, across, found)
