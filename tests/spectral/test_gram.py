"""Products with a few rows, in parts and in one piece."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from clipbench.spectral.gram import Wide, few_times, few_times_less, root_of_scale

SHAPES = [(192, 1600), (64, 363), (768, 2732), (512, 512), (250, 1001), (768, 12)]


def product(rows: Tensor, matrix: Tensor) -> Tensor:
    return rows.double() @ matrix.double()


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("rows", [1, 3, 6, 12, 16, 17])
@pytest.mark.parametrize("row_major", [True, False])
def test_few_rows_times_a_matrix_and_times_its_transpose(shape: tuple[int, int], rows: int, row_major: bool) -> None:
    draws = torch.Generator().manual_seed(0)
    matrix = torch.randn(shape, generator=draws) if row_major else torch.randn(shape[::-1], generator=draws).mT
    left, right = torch.randn(rows, shape[0], generator=draws), torch.randn(rows, shape[1], generator=draws)
    close(few_times(left, matrix), product(left, matrix))
    close(few_times(right, matrix.mT), product(right, matrix.mT))


@pytest.mark.parametrize(
    ("shape", "rows", "cut"),
    [
        ((192, 1600), 6, True),
        ((192, 1600), 13, False),
        ((768, 2732), 16, True),
        ((64, 363), 6, False),
        ((250, 1001), 6, False),
    ],
)
def test_a_wide_matrix_is_cut_where_that_is_faster_and_its_products_are_the_same(
    shape: tuple[int, int], rows: int, cut: bool
) -> None:
    draws = torch.Generator().manual_seed(0)
    matrix, block = torch.randn(shape, generator=draws), torch.randn(rows, shape[0], generator=draws)
    wide = Wide(matrix, rows)
    assert wide.cut is cut
    assert (wide.parts.data_ptr(), wide.parts.ndim) == (matrix.data_ptr(), 3 if cut else 2)
    right = wide.right(block)
    close(wide.whole(right), product(block, matrix))
    assert torch.equal(wide.whole(wide.split(matrix)), matrix)
    close(wide.left(right), product(product(block, matrix), matrix.mT))
    rotation = torch.randn(2, rows, generator=draws)
    close(wide.whole(wide.turned(rotation, right)), product(rotation, product(block, matrix)))


@pytest.mark.parametrize("rows", [10, 16])
def test_the_product_less_another_as_rows_and_as_columns(rows: int) -> None:
    draws = torch.Generator().manual_seed(0)
    block, matrix, other = (torch.randn(*shape, generator=draws) for shape in ((rows, 30), (30, 40), (rows, 40)))
    expected = 0.5 * product(block, matrix) - other.double()
    close(few_times_less(block, matrix, other, 0.5), expected)


@pytest.mark.parametrize("norm", [1e-45, 3e-20, 0.7, 1.0, 5.0, 1e18, 4e38, 1e41])
def test_the_scale_is_a_power_of_two_that_float32_holds(norm: float) -> None:
    root = root_of_scale(norm)
    assert math.frexp(root)[0] == 0.5
    assert 1e-38 < root < 1e38
    assert 0.5 <= norm * root * root <= 2.0
