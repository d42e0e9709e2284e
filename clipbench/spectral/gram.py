"""What the kernels share: the Gram matrix of the shorter side, products with a few rows, norms, and a start."""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

BLOCK = 96  # rows at a time; measured on two AVX-512 cores: 64 to 128 are alike, and 1.2 to 1.4 times a plain product
FEWEST = 4  # rows from which a product is not made of matrix-vector products, which round up to ten times worse
PARTS = 4  # of a matrix, cut along its longer side, for products with a few rows, in 0.6 to 0.9 of the time
LARGE = ((12, 2**17), (16, 2**21))  # rows up to which, and entries from which that is so
COLUMNS = 16  # so many rows, or twice so many, are multiplied faster as columns, by a tenth to a third; others slower
LONG = 2**17  # entries of a row up to which its norm and products keep their digits in float32


def gram(matrix: Tensor) -> Tensor:
    """matrix @ matrix.T, shape (n, n), of a wide (n, m); only blocks on and below the diagonal are multiplied."""
    n = matrix.shape[0]
    if n <= 2 * BLOCK:
        return matrix @ matrix.mT
    product = matrix.new_empty(n, n)
    for row in range(0, n, BLOCK):
        end = min(row + BLOCK, n)
        torch.mm(matrix[row:end], matrix[:end].mT, out=product[row:end, :end])
        if row:
            product[:row, row:end] = product[row:end, :row].mT
    return product


class Wide:
    """A wide matrix G (n, m) for products with a few rows: cut into parts, (PARTS, n, m / PARTS), where that is faster.

    Of a matrix in one piece MKL gives each core half the columns in rows · G and half the rows in right · Gᵀ, so that
    what one core has in its cache the other one wants next; parts stay where they are.
    """

    def __init__(self, matrix: Tensor, rows: int) -> None:
        large = any(rows <= most and matrix.numel() >= least for most, least in LARGE)
        self.cut = large and matrix.shape[1] % PARTS == 0
        self.parts = self.split(matrix)

    def split(self, right: Tensor) -> Tensor:
        """(b, m) as G is: (PARTS, b, m / PARTS), a view, or as it is."""
        return right.unflatten(1, (PARTS, -1)).transpose(0, 1) if self.cut else right

    def whole(self, right: Tensor) -> Tensor:
        """The inverse of `split`."""
        return right.transpose(0, 1).flatten(1) if self.cut else right

    def right(self, rows: Tensor) -> Tensor:
        """rows (b, n) · G, split."""
        return self.turned(rows, self.parts)

    def left(self, right: Tensor) -> Tensor:
        """right · Gᵀ (b, n), of something split."""
        return torch.bmm(right, self.parts.mT).sum(0) if self.cut else right @ self.parts.mT

    def turned(self, rotation: Tensor, right: Tensor) -> Tensor:
        """rotation (k, b) · right, of something split, and split."""
        return torch.bmm(rotation.expand(PARTS, -1, -1), right) if self.cut else rotation @ right


def few_times(rows: Tensor, matrix: Tensor) -> Tensor:
    """rows @ matrix for few rows, to the rounding of a matrix product; `matrix` is wide, or the transpose of one.

    Of a square one the layout tells. Products as columns gain from parts only where the matrix lies by rows.
    """
    count = rows.shape[0]
    if count < FEWEST:
        return few_times(torch.nn.functional.pad(rows, (0, 0, 0, FEWEST - count)), matrix)[:count]
    columns = count % COLUMNS == 0
    if (matrix.shape[1], matrix.stride(0)) > (matrix.shape[0], matrix.stride(1)):
        wide = Wide(matrix, count)
        if wide.cut and (not columns or matrix.stride(1) == 1):
            return wide.whole(wide.right(rows))
    elif not columns:
        wide = Wide(matrix.mT, count)
        if wide.cut:
            return wide.left(wide.split(rows))
    return (matrix.mT @ rows.mT).mT if columns else rows @ matrix


def few_times_less(rows: Tensor, matrix: Tensor, other: Tensor, scale: float) -> Tensor:
    """scale · rows @ matrix − other, in one operation: in two it rounds twice as much."""
    if rows.shape[0] % COLUMNS == 0:
        return torch.addmm(other.mT, matrix.mT, rows.mT, beta=-1, alpha=scale).mT
    return torch.addmm(other, rows, matrix, beta=-1, alpha=scale)


def frobenius(matrix: Tensor) -> float:
    """‖matrix‖_F; by rows, and long rows in float64, since torch's float32 norm of 2²⁵ entries is off by 9e-3."""
    short = max(matrix.shape) <= LONG
    dtype = torch.promote_types(matrix.dtype, torch.float32) if short else torch.float64
    return float(torch.linalg.vector_norm(torch.linalg.vector_norm(matrix, dim=1, dtype=dtype)))


def root_of_scale(norm: float) -> float:
    """A power of two, exact to multiply by, whose square takes `norm` to [1/2, 2]; 1/norm may be beyond float32."""
    return 2.0 ** -round(math.log2(norm) / 2)


@lru_cache(maxsize=64)
def start(rows: int, n: int, dtype: torch.dtype) -> Tensor:
    """Fixed Gaussian rows, shape (rows, n): the same in every run, drawn from a generator of their own."""
    return torch.randn(rows, n, generator=torch.Generator().manual_seed(0), dtype=dtype)


def orthonormal_rows(matrix: Tensor) -> Tensor:
    """Orthonormal basis of the row space, shape (b, n); row-major here is what LAPACK wants without a copy."""
    return torch.linalg.qr(matrix.mT).Q.mT
