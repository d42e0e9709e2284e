"""The sequence of trials: a function of the index, even, and the same in its first coordinate for every method."""

from __future__ import annotations

import numpy as np
import pytest

from clipbench.tuning.sequence import DIMENSIONS, point


def test_a_point_depends_on_its_index_alone() -> None:
    forward = [point(k, 3) for k in range(20)]
    assert [point(k, 3) for k in reversed(range(20))] == forward[::-1]


def test_the_first_coordinate_does_not_depend_on_how_many_there_are() -> None:
    for k in (0, 1, 5, 31):
        assert {point(k, d)[0] for d in range(1, DIMENSIONS + 1)} == {point(k, 1)[0]}


@pytest.mark.parametrize("m", [2, 3, 4, 5])
def test_every_axis_is_covered_evenly(m: int) -> None:
    """A (t, m, s)-net in base 2: of 2^m points every coordinate has one in each of 2^m equal parts."""
    points = np.array([point(k, 6) for k in range(2**m)])
    for column in points.T:
        assert sorted((column * 2**m).astype(int)) == list(range(2**m))


def test_the_points_are_these_ones() -> None:
    """They must not change with a version of SciPy: trials would no longer be found again."""
    found = [round(point(k, 2)[i], 6) for k in range(3) for i in range(2)]
    assert found == FIRST


FIRST = [0.499556, 0.714986, 0.816927, 0.2097, 0.568813, 0.76679]


@pytest.mark.parametrize("dimensions", [0, DIMENSIONS + 1])
def test_too_many_dimensions_are_refused(dimensions: int) -> None:
    with pytest.raises(ValueError, match=f"dimensions must be 1 to {DIMENSIONS}, got {dimensions}"):
        point(0, dimensions)
    with pytest.raises(ValueError, match="index must be >= 0, got -1"):
        point(-1, 1)
