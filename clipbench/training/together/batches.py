"""The members' batches: equal to what each would see alone; members with the same data and seed share theirs.

Where making a batch draws nothing (no augmentation, no fresh noise), many steps are made ahead in one call.
"""

from __future__ import annotations

import torch
from torch import Tensor

from clipbench.data.base import Batch
from clipbench.training.batches import Batches
from clipbench.training.seeding import generator
from clipbench.training.setup import Setup
from clipbench.training.together.members import Members

AHEAD_BYTES = 2**24  # of batches made ahead
AHEAD_STEPS = 64


class Source:
    """The batches of one seed on one dataset."""

    def __init__(self, setup: Setup) -> None:
        options = setup.options
        self.batches = Batches(setup.data, options.seed, options.batch_size, options.accumulation, setup.device)
        self.data, self.device, self.seed = setup.data, setup.device, options.seed
        self.pure = self._is_pure()

    def _is_pure(self) -> bool:
        """Whether a batch depends on its indices alone, row by row; tried with the batches of the first two steps."""
        draws = generator(self.seed, "augmentation", 0, 0, self.device)
        before = draws.get_state()
        rows = [self.batches.indices(0), self.batches.indices(1 % self.batches.steps_per_epoch)]
        apart = [self.data.batch(each, draws) for each in rows]
        joined = self.data.batch(torch.cat(rows), draws)
        if not torch.equal(before, draws.get_state()):
            return False
        for one, other in zip(joined, _joined(apart), strict=True):
            if one is not None and other is not None and not torch.equal(one, other):
                return False
        return True

    def steps(self, first: int, count: int) -> Batch:
        """The samples of `count` steps from `first` on, one step after the other."""
        rows = [self.batches.indices(step) for step in range(first, first + count)]
        if self.pure:
            return self.data.batch(torch.cat(rows), generator(self.seed, "augmentation", first, 0, self.device))
        return _joined([
            self.data.batch(part, generator(self.seed, "augmentation", first + place, number, self.device))
            for place, step in enumerate(rows)
            for number, part in enumerate(step.split(self.batches.batch_size))
        ])  # fmt: skip


class MemberBatches:
    """`step(t)` is the whole step's batch of every member, (R, samples, …) or (1, samples, …) where all share it."""

    def __init__(self, members: Members) -> None:
        keys = [(id(setup.data), setup.options.seed) for setup in members.setups]
        own = dict(zip(keys, members.setups, strict=True))
        self.sources = [Source(setup) for setup in own.values()]
        places = {key: place for place, key in enumerate(own)}
        self.which = torch.tensor([places[key] for key in keys], device=members.device)
        self.per_member = len(self.sources) == len(members)
        self._first, self._count, self._ahead = 0, 0, Batch(torch.empty(0), torch.empty(0))

    def step(self, step: int) -> Batch:
        """The batch of `step`, counted from 0."""
        if not self._first <= step < self._first + self._count:
            self._fill(step)
        place = step - self._first
        fields = [None if field is None else field[:, place] for field in self._ahead]
        if len(self.sources) > 1 and not self.per_member:
            fields = [None if field is None else field.index_select(0, self.which) for field in fields]
        return Batch(*fields)  # type: ignore[arg-type]  # only the noise may be None, and stays so

    def _fill(self, step: int) -> None:
        count = self._count or 1  # the first step tells how large one is
        if self._count == 1:
            bytes_each = sum(field.nbytes for field in self._ahead if field is not None)
            count = max(1, min(AHEAD_STEPS, AHEAD_BYTES // max(1, bytes_each)))
        parts = [source.steps(step, count) for source in self.sources]
        fields = []
        for each in zip(*parts, strict=True):
            missing = any(field is None for field in each)
            fields.append(None if missing else torch.stack([field.unflatten(0, (count, -1)) for field in each]))
        self._first, self._count = step, count
        self._ahead = Batch(*fields)  # type: ignore[arg-type]  # only the noise may be None, and stays so


def _joined(batches: list[Batch]) -> Batch:
    """One batch after the other."""
    noises = [batch.output_noise for batch in batches if batch.output_noise is not None]
    return Batch(
        torch.cat([batch.inputs for batch in batches]),
        torch.cat([batch.targets for batch in batches]),
        torch.cat(noises) if noises else None,
    )


def flat(batch: Batch, members: int) -> Batch:
    """A batch (R, samples, …) or (1, samples, …) as one of R · samples: a task treats every sample for itself."""

    def fold(field: Tensor | None) -> Tensor | None:
        return None if field is None else field.expand(members, *field.shape[1:]).flatten(0, 1)

    return Batch(*(fold(field) for field in batch))  # type: ignore[arg-type]
