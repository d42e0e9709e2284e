"""Estimators that need whole vectors: the coordinate-wise median, the geometric median of means."""

from __future__ import annotations

import numpy as np

TOLERANCE = 1e-10  # of a Weiszfeld step, relative to the spread of the points
ITERATIONS = 1000


def coordinate_median(samples: np.ndarray) -> np.ndarray:
    """The median of every coordinate: (…, d) from (…, d, n); the mean of the two middle ones where n is even."""
    n = samples.shape[-1]
    lower, upper = (n - 1) // 2, n // 2
    ordered = np.partition(samples, (lower, upper), axis=-1)
    return 0.5 * (ordered[..., lower] + ordered[..., upper])


def group_means(samples: np.ndarray, groups: int) -> np.ndarray:
    """The means of `groups` runs of samples, at most n of them, which must divide n: (…, d, m) from (…, d, n).

    Their geometric median is the estimator of S. Minsker, Bernoulli 21, 2015.
    """
    n = samples.shape[-1]
    used = min(groups, n)
    return np.asarray(samples.reshape(*samples.shape[:-1], used, n // used).mean(axis=-1))


def geometric_median(points: np.ndarray) -> np.ndarray:
    """argmin_x Σ_j ‖x − y_j‖ for points y (R, d, m): (R, d), by Weiszfeld's iteration from the mean.

    Where the iteration meets a point, it is kept off it by a hair.
    """
    centre = points.mean(axis=-1)
    spread = np.sqrt(np.square(points - centre[..., None]).sum(axis=(1, 2)))
    hair = 1e-12 * spread[:, None] + np.finfo(float).tiny
    moving = np.arange(len(points))
    for _ in range(ITERATIONS):
        part = points[moving]
        distances = np.sqrt(np.square(part - centre[moving][..., None]).sum(axis=1))
        weights = 1.0 / np.maximum(distances, hair[moving])
        following = np.einsum("rdm,rm->rd", part, weights) / weights.sum(axis=1, keepdims=True)
        step = np.sqrt(np.square(following - centre[moving]).sum(axis=1))
        centre[moving] = following
        moving = moving[step > TOLERANCE * spread[moving]]
        if not len(moving):
            break
    return centre
