"""Which samples a step sees: a function of (seed, step) alone, the same for every method and after a resume."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from clipbench.data.base import Batch, ByEpoch, Data
from clipbench.training.seeding import derive, generator, seed_global


class Batches:
    """Sampling without replacement, epoch by epoch; what does not fill a whole step at an epoch's end is left out.

    The order of an epoch is a permutation drawn on the CPU (the same on every device) from (seed, epoch).
    """

    def __init__(self, data: Data, seed: int, batch_size: int, accumulation: int, device: torch.device) -> None:
        self.data, self.seed, self.device = data, seed, device
        self.batch_size, self.accumulation = batch_size, accumulation
        self.steps_per_epoch = data.sizes["train"] // (batch_size * accumulation)
        self._draws = torch.Generator(device)  # one, seeded anew each time: making one takes longer
        self._epoch: int | None = None
        self._order = torch.empty(0, dtype=torch.int64)

    def indices(self, step: int) -> Tensor:
        """The samples (batch_size × accumulation,) of optimizer step `step`, counted from 0, on the device."""
        epoch, position = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:
            order = torch.randperm(self.data.sizes["train"], generator=generator(self.seed, "order", epoch))
            self._epoch, self._order = epoch, order.to(self.device)
            if isinstance(self.data, ByEpoch):
                self.data.begin_epoch(epoch, generator(self.seed, "augmentation"))
        width = self.batch_size * self.accumulation
        return self._order[position * width : (position + 1) * width]

    def step(self, step: int) -> Iterator[Batch]:
        """The micro-batches of optimizer step `step`, one after the other.

        Each is made when it is asked for, just after the global generators were seeded for its dropout.
        """
        rows = self.indices(step)
        for part, own in enumerate([rows] if self.accumulation == 1 else rows.split(self.batch_size)):
            self._draws.manual_seed(derive(self.seed, "augmentation", step, part))
            batch = self.data.batch(own, self._draws)
            seed_global(self.seed, "dropout", step, part)
            yield batch
