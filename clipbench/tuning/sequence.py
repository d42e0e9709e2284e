"""The low-discrepancy sequence that trials are taken from: point k is a function of k alone."""

from __future__ import annotations

from scipy.stats import qmc

DIMENSIONS = 16  # always drawn, so that a column does not depend on how many a method uses
SCRAMBLE_SEED = 20_240_229  # our choice; the points must be the same wherever the benchmark is run


def point(index: int, dimensions: int) -> list[float]:
    """The first `dimensions` coordinates, in [0, 1), of point `index` of Owen's scrambled Sobol sequence.

    The first 2^m points have one value in each of 2^m equal parts of every axis. Coordinate 1 is the learning
    rate of every method, whatever else a method varies. Raises ValueError above 16 dimensions.
    Source: Sobol (1967), scrambling as in Matousek (1998), from scipy.stats.qmc.
    """
    if not 1 <= dimensions <= DIMENSIONS:
        raise ValueError(f"dimensions must be 1 to {DIMENSIONS}, got {dimensions}")
    if index < 0:
        raise ValueError(f"index must be >= 0, got {index}")
    sequence = qmc.Sobol(DIMENSIONS, scramble=True, rng=SCRAMBLE_SEED)
    if index:
        sequence.fast_forward(index)
    return [float(u) for u in sequence.random(1)[0, :dimensions]]
