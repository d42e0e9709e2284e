"""The Gram matrix of the shorter side, the Frobenius norm, and the deterministic start of an iteration."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

BLOCK = 96  # rows at a time; measured on two AVX-512 cores: 64 to 128 are alike, and 1.2 to 1.4 times a plain product
FEWEST = 4  # rows from which a product is not made of matrix-vector products, which round up to ten times worse
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


def few_times(rows: Tensor, matrix: Tensor) -> Tensor:
    """rows @ matrix for few rows, to the rounding of a matrix product."""
    missing = FEWEST - rows.shape[0]
    if missing <= 0:
        return (matrix.mT @ rows.mT).mT if rows.shape[0] % COLUMNS == 0 else rows @ matrix
    return (torch.nn.functional.pad(rows, (0, 0, 0, missing)) @ matrix)[: rows.shape[0]]


def few_times_less(rows: Tensor, matrix: Tensor, other: Tensor, scale: float) -> Tensor:
    """scale · rows @ matrix − other, in one operation: in two it rounds twice as much."""
    if rows.shape[0] % COLUMNS == 0:
        return torch.addmm(other.mT, matrix.mT, rows.mT, beta=-1, alpha=scale).mT
    return torch.addmm(other, rows, matrix, beta=-1, alpha=scale)


def frobenius(matrix: Tensor) -> float:
    """‖matrix‖_F; by rows, and long rows in float64, since torch's float32 norm of 2²⁵ entries is off by 9e-3."""
    short = max(matrix.shape) <= LONG
    wide = torch.promote_types(matrix.dtype, torch.float32) if short else torch.float64
    return float(torch.linalg.vector_norm(torch.linalg.vector_norm(matrix, dim=1, dtype=wide)))


@lru_cache(maxsize=64)
def start(rows: int, n: int, dtype: torch.dtype) -> Tensor:
    """Fixed Gaussian rows, shape (rows, n): the same in every run, drawn from a generator of their own."""
    return torch.randn(rows, n, generator=torch.Generator().manual_seed(0), dtype=dtype)


def orthonormal_rows(matrix: Tensor) -> Tensor:
    """Orthonormal basis of the row space, shape (b, n); row-major here is what LAPACK wants without a copy."""
    return torch.linalg.qr(matrix.mT).Q.mT
