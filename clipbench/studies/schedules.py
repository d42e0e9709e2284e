"""Schedules of the theory: how a method's batch, rate and threshold follow from its number of samples K.

    ps_clip      arXiv 2605.02701: n = c K^{p/(3p−2)}, T = K/n, η = c′/L, τ_k = α k^{1/p}
    mini_batch   the same n, T, η
    normalised   the same n, T; η = c′/√T
    sgd          n = 1, T = K, η = c′/√K
    norm_clip    n = 1, T = K, η = c′ K^{−p/(3p−2)}/L, τ = c K^{1/(3p−2)}

and for matrices, arXiv 2605.11838 with moments of order α = p:

    spectral, norm   n = 1, T = K, η = c′ K^{−p/(3p−2)}, τ = c K^{1/(3p−2)}
    sgd              n = 1, T = K, η = c′ K^{−p/(3p−2)}
"""

from __future__ import annotations

import math
from typing import NamedTuple


class Constants(NamedTuple):
    """A method's constants: `batch` is c of n, `rate` c′, `threshold` α of ps_clip or c of τ; 1 where it has none."""

    batch: float
    rate: float
    threshold: float


class Schedule(NamedTuple):
    """Samples in a batch, steps, learning rate, threshold."""

    samples: int
    steps: int
    rate: float
    threshold: float


BATCHED = ("ps_clip", "mini_batch", "normalised")
VECTOR_METHODS = (*BATCHED, "sgd", "norm_clip")
MATRIX_METHODS = ("spectral_clip", "norm_clip", "sgd")


def vector_schedule(method: str, constants: Constants, total: int, power: float, smoothness: float) -> Schedule:
    """The schedule of one of VECTOR_METHODS for K = total samples; a batch has at least one sample, at most K."""
    exponent = power / (3 * power - 2)
    if method in BATCHED:
        samples = min(max(1, round(constants.batch * total**exponent)), total)
        steps = total // samples
        rate = constants.rate / (math.sqrt(steps) if method == "normalised" else smoothness)
        return Schedule(samples, steps, rate, constants.threshold if method == "ps_clip" else math.inf)
    if method == "sgd":
        return Schedule(1, total, constants.rate / math.sqrt(total), math.inf)
    threshold = constants.threshold * total ** (1 / (3 * power - 2))
    return Schedule(1, total, constants.rate * total**-exponent / smoothness, threshold)


def matrix_schedule(method: str, constants: Constants, total: int, power: float) -> Schedule:
    """The schedule of one of MATRIX_METHODS for K = total samples."""
    rate = constants.rate * total ** (-power / (3 * power - 2))
    threshold = math.inf if method == "sgd" else constants.threshold * total ** (1 / (3 * power - 2))
    return Schedule(1, total, rate, threshold)
