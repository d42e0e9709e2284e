"""Data in float64, for runs in that precision."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from clipbench.data.base import Batch, Data


class DoubleData:
    """`data` with the floating fields of every batch promoted; what is drawn is drawn as in float32."""

    def __init__(self, data: Data) -> None:
        self._data = data
        self.sizes = data.sizes

    def __getattr__(self, name: str) -> Any:
        """What else the data can do, such as begin an epoch."""
        return getattr(self._data, name)

    def batch(self, indices: Tensor, generator: torch.Generator) -> Batch:
        return _double(self._data.batch(indices, generator))

    def evaluation(self, split: str, batch_size: int) -> Iterator[Batch]:
        for batch in self._data.evaluation(split, batch_size):
            yield _double(batch)


def _double(batch: Batch) -> Batch:
    fields = [None if f is None else f.double() if f.is_floating_point() else f for f in batch]
    return Batch(*fields)  # type: ignore[arg-type]  # only the noise may be None, and stays so
