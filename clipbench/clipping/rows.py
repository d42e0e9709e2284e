"""State with one row per name, kept stacked: one tensor operation serves all layers, and nothing is read back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Column(NamedTuple):
    """What a row holds before its first value: `shape` without the leading row dimension, dtype, fill value."""

    dtype: torch.dtype
    fill: float
    shape: tuple[int, ...] = ()


class NamedRows:
    """Columns of tensors, shape (rows, *column.shape); rows are made when their name is first seen.

    The columns live on the device of the last `select`. The row numbers of a list of names are computed once for
    each distinct list, so a training loop that always gives the same names indexes nothing at all.
    """

    def __init__(self, **columns: Column) -> None:
        self.columns = columns
        self.names: dict[str, int] = {}
        self._device = torch.device("cpu")
        self._indices: dict[tuple[str, ...], Tensor | None] = {}
        self._tensors = {key: self._fresh(column, 0) for key, column in columns.items()}

    def _fresh(self, column: Column, count: int) -> Tensor:
        return torch.full((count, *column.shape), column.fill, dtype=column.dtype, device=self._device)

    def select(self, names: Sequence[str], device: torch.device) -> Selection:
        """A view of the rows of `names`, on `device`."""
        if device != self._device:
            self._device = device
            self._tensors = {key: tensor.to(device) for key, tensor in self._tensors.items()}
            self._indices.clear()
        key = tuple(names)
        if key not in self._indices:
            self._grow(key)
            rows = [self.names[name] for name in key]
            whole = rows == list(range(len(self.names)))
            self._indices[key] = None if whole else torch.tensor(rows, dtype=torch.int64, device=device)
        return Selection(self._tensors, self._indices[key])

    def _grow(self, names: Sequence[str]) -> None:
        new = [name for name in dict.fromkeys(names) if name not in self.names]
        if new:
            self._indices.clear()
            for name in new:
                self.names[name] = len(self.names)
            for key, column in self.columns.items():
                self._tensors[key] = torch.cat([self._tensors[key], self._fresh(column, len(new))])

    def state_dict(self) -> dict[str, dict[str, Tensor]]:
        """{name: {column: tensor}}; copies, so that a later step does not change them."""
        return {
            name: {key: tensor[row].clone() for key, tensor in self._tensors.items()}
            for name, row in self.names.items()
        }

    def load_state_dict(self, state: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Replace all rows. Raises ValueError where a column is missing or has another shape."""
        for name, row in state.items():
            for key, column in self.columns.items():
                shape = tuple(row[key].shape) if key in row else None
                if shape != column.shape:
                    raise ValueError(f"state must hold {key} of shape {column.shape} for {name}, got {shape}")
        self.names = {name: index for index, name in enumerate(state)}
        self._indices.clear()
        for key, column in self.columns.items():
            stacked = [row[key].to(self._device, column.dtype) for row in state.values()]
            self._tensors[key] = torch.stack(stacked) if stacked else self._fresh(column, 0)


class Selection:
    """Some rows of NamedRows: `[column]` reads shape (names, *column.shape), assignment writes."""

    def __init__(self, tensors: dict[str, Tensor], index: Tensor | None) -> None:
        self._tensors = tensors
        self._index = index

    def __getitem__(self, key: str) -> Tensor:
        tensor = self._tensors[key]
        return tensor if self._index is None else tensor.index_select(0, self._index)

    def __setitem__(self, key: str, value: Tensor) -> None:
        old = self._tensors[key]
        value = value.to(old.dtype)
        self._tensors[key] = value if self._index is None else old.index_copy(0, self._index, value)
