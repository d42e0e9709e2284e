"""Tensor ⇄ matrix: a weight of any rank as the matrix that is clipped."""

from __future__ import annotations

from torch import Tensor


def matrix_shape(shape: tuple[int, ...]) -> tuple[int, int]:
    """The paper's reshape: (shape[0], −1); vectors are n × 1, so spectral clipping is norm clipping there.

    A convolution (out, in, kh, kw) is (out, in · kh · kw); a scalar is 1 × 1.
    """
    rows = shape[0] if shape else 1
    columns = 1
    for size in shape[1:]:
        columns *= size
    return rows, columns


def as_matrix(tensor: Tensor) -> Tensor:
    """`tensor` as (rows, columns); a view wherever the strides allow one."""
    return tensor.reshape(matrix_shape(tuple(tensor.shape)))


def wide(matrix: Tensor) -> Tensor:
    """The matrix or its transpose (a view), so that rows ≤ columns; singular values are the same."""
    return matrix if matrix.shape[-2] <= matrix.shape[-1] else matrix.mT
