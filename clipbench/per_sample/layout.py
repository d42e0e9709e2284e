"""Where the sample axis is: rows of a flattened tensor are sample-major (k, t) or position-major (t, k)."""

from __future__ import annotations

from enum import Enum

import torch
from torch import Tensor


class Layout(Enum):
    """Order of the n · positions rows of a layer's output: MAJOR is k · positions + t, MINOR is t · n + k."""

    MAJOR = "major"
    MINOR = "minor"

    def split(self, rows: Tensor, n: int) -> Tensor:
        """(n · positions, *features) → (n, positions, *features), a view."""
        if self is Layout.MAJOR:
            return rows.unflatten(0, (n, -1))
        return rows.unflatten(0, (-1, n)).transpose(0, 1)

    def spread(self, values: Tensor, rows: int) -> Tensor:
        """One value per sample (n,) → one per row (rows,)."""
        n = values.shape[0]
        if rows == n:
            return values
        if self is Layout.MAJOR:
            return values[:, None].expand(n, rows // n).reshape(rows)
        return values.expand(rows // n, n).reshape(rows)


def guess_layout(lead: tuple[int, ...], n: int) -> Layout:
    """The layout that the leading axes suggest: the sample axis is the first of length n."""
    if len(lead) == 1:
        return Layout.MAJOR
    return Layout.MINOR if lead[0] != n and n in lead[1:] else Layout.MAJOR


class SampleWeights:
    """γ, one weight per sample, (n,); remembers its versions by row, which many layers share."""

    def __init__(self, values: Tensor) -> None:
        self.values = values
        self._column = values.unsqueeze(1)
        self._columns: dict[tuple[Layout, int, torch.dtype], Tensor] = {}

    def column(self, layout: Layout, rows: int, dtype: torch.dtype) -> Tensor:
        """γ of every row's sample, (rows, 1)."""
        if rows == self.values.shape[0] and dtype == self.values.dtype:
            return self._column
        key = (layout, rows, dtype)
        found = self._columns.get(key)
        if found is None:
            found = self._columns[key] = layout.spread(self.values, rows).to(dtype).unsqueeze(1)
        return found
