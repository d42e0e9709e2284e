"""Odd polynomials whose composition tends to sign(x): Polar Express (Amsel, Persson, Musco, Gower, 2025).

The best odd quintic p on [l, u] minimises max |1 − p(x)|; it maps [l, u] to [1 − e, 1 + e], where the next one is
taken, and so on: the first steps make small values grow, the last converge cubically.
Pure Python in float64: no tensor is read, so a step that uses the coefficients never waits for a device.
"""

from __future__ import annotations

import math
from functools import lru_cache

Quintic = tuple[float, float, float]  # a, b, c of a x + b x³ + c x⁵
NARROW = 1e-3  # intervals narrower than this: the Taylor polynomial of sign at 1 is as good, and well conditioned
TAYLOR: Quintic = (15 / 8, -10 / 8, 3 / 8)
FLOOR = 0.17  # no polynomial is fitted below this share of its interval: see `sign_polynomials`


def _solve(rows: list[list[float]]) -> list[float]:
    """Gaussian elimination with pivoting of a small augmented system."""
    size = len(rows)
    for column in range(size):
        pivot = max(range(column, size), key=lambda row: abs(rows[row][column]))
        rows[column], rows[pivot] = rows[pivot], rows[column]
        for row in range(size):
            if row != column:
                factor = rows[row][column] / rows[column][column]
                rows[row] = [x - factor * y for x, y in zip(rows[row], rows[column], strict=True)]
    return [rows[index][size] / rows[index][index] for index in range(size)]


@lru_cache(maxsize=4096)
def best_quintic(low: float, high: float) -> tuple[Quintic, float]:
    """The odd quintic nearest to 1 on [low, high], and its error; by Remez exchange on four points."""
    if high - low < NARROW * high:
        return TAYLOR, max(1 - low, high - 1) ** 3 * 2.5
    inner = [(3 * low + high) / 4, (low + 3 * high) / 4]
    a = b = c = error = 0.0
    for _ in range(100):
        points = [low, *inner, high]
        rows = [[x, x**3, x**5, (-1.0) ** k, 1.0] for k, x in enumerate(points)]
        a, b, c, error = _solve(rows)
        # The inner extrema are the roots of a + 3 b x² + 5 c x⁴.
        root = math.sqrt(max(9 * b * b - 20 * a * c, 0.0))
        moved = [math.sqrt((-3 * b + sign * root) / (10 * c)) for sign in (-1.0, 1.0)]
        change = max(abs(x - y) for x, y in zip(inner, moved, strict=True))
        inner = moved
        if change < 1e-11 * high:
            break
    return (a, b, c), abs(error)


@lru_cache(maxsize=256)
def sign_polynomials(lowest: float, iterations: int, cushion: float) -> tuple[tuple[Quintic, ...], float]:
    """`iterations` quintics for [lowest, 1], in order, and the error max |1 − p(x)| of their composition there.

    The best quintic for a small l equioscillates between 1 − e and 1 + e with e ≈ 1: it sends some LARGE values down to
    l too, where rounding is amplified by 1/l again (measured: 1e-1 at K = 14 in float32). So each is fitted on
    [max(l, FLOOR u), u], where e = 0.27: small values then grow by 4.3 a step, not 8, and large ones stay large.
    cushion: the interval is taken wider by this share, for rounding; beyond its end a quintic would diverge.
    """
    low, high, error, polynomials = lowest, 1.0, 1.0, []
    for _ in range(iterations):
        a, b, c = TAYLOR if error < cushion else best_quintic(max(low, FLOOR * high), high * (1 + cushion))[0]
        ends = [abs(1 - value) for value in _range((a, b, c), max(low, FLOOR * high), high * (1 + cushion))]
        error = max(ends)
        polynomials.append((a, b, c))
        low, high = min(a * low + b * low**3 + c * low**5, 1 - error), 1 + error
    return tuple(polynomials), max(error, 1 - low)


def _range(quintic: Quintic, low: float, high: float) -> list[float]:
    """Values of a quintic at the ends of an interval and at its extrema inside."""
    a, b, c = quintic
    root = math.sqrt(max(9 * b * b - 20 * a * c, 0.0))
    squares = [(-3 * b + sign * root) / (10 * c) for sign in (-1.0, 1.0)]
    inside = [math.sqrt(square) for square in squares if low**2 < square < high**2]
    return [a * x + b * x**3 + c * x**5 for x in (low, high, *inside)]


@lru_cache(maxsize=64)
def resolved(iterations: int, accuracy: float, cushion: float) -> float:
    """The smallest l so that `iterations` quintics bring all of [l, 1] to 1 within `accuracy` (by bisection)."""
    inside, outside = -1e-3, -16.0  # log10 l
    for _ in range(40):
        middle = (inside + outside) / 2
        if sign_polynomials(10**middle, iterations, cushion)[1] <= accuracy:
            inside = middle
        else:
            outside = middle
    return 10**inside
