"""Vector data on the device: rows as they are, and fresh noise at the output where it is asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from clipbench.data.base import Batch, slices


class Vectors(NamedTuple):
    """inputs: (n, d) float32.  targets: (n, outputs) float32 or (n,) int64."""

    inputs: Tensor
    targets: Tensor

    def to(self, device: torch.device) -> Vectors:
        return Vectors(self.inputs.to(device), self.targets.to(device))


OutputNoise = Callable[[int, torch.Generator], Tensor]


class VectorData:
    """Rows on the device (see clipbench.data.base.Data).

    output_noise: (n, generator) ↦ (n, outputs), drawn anew for every training batch; None for none.
    """

    def __init__(self, splits: dict[str, Vectors], output_noise: OutputNoise | None = None) -> None:
        self._splits = splits
        self._output_noise = output_noise
        self.sizes: dict[str, int] = {name: len(part.inputs) for name, part in splits.items()}

    def batch(self, indices: Tensor, generator: torch.Generator) -> Batch:
        train = self._splits["train"]
        noise = None if self._output_noise is None else self._output_noise(len(indices), generator)
        return Batch(train.inputs.index_select(0, indices), train.targets.index_select(0, indices), noise)

    def evaluation(self, split: str, batch_size: int) -> Iterator[Batch]:
        part = self._splits[split]
        for rows in slices(len(part.inputs), batch_size):
            yield Batch(part.inputs[rows], part.targets[rows])
