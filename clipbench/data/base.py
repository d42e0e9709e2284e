"""What a dataset is to the rest of the package: a Spec, a Task and, once loaded, batches on the device."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from clipbench.errors import ConfigError


class Spec(NamedTuple):
    """What a model has to fit.

    kind: "image" (shape (3, 32, 32)), "vector" (shape (d,)) or "tokens" (shape (context,)).
    shape: of one input, without the batch.  outputs: number of classes, of regression outputs, or of tokens.
    name: the dataset's, for error messages.
    """

    kind: Literal["image", "vector", "tokens"]
    shape: tuple[int, ...]
    outputs: int
    name: str


class Batch(NamedTuple):
    """n samples on the device.

    inputs: (n, *shape), normalised.  targets: (n,) classes, (n, outputs) real values, or (n, context) tokens.
    output_noise: (n, outputs) or None; noise on the gradient at the model's output, fresh at every visit of a
    sample.
    """

    inputs: Tensor
    targets: Tensor
    output_noise: Tensor | None = None


class Task(Protocol):
    """The loss that is trained and the metrics that are reported, one value per sample."""

    def losses(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Training losses (n,), label smoothing and output noise included; their mean is trained."""
        ...

    def metrics(self, outputs: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Values (n,) whose means over a split are its metrics; "loss" is without smoothing or noise."""
        ...


class Data(Protocol):
    """A loaded dataset. Everything is on the device; nothing here waits for it."""

    sizes: dict[str, int]  # samples in train, validation and test

    def batch(self, indices: Tensor, generator: torch.Generator) -> Batch:
        """The training samples `indices` (n,), augmented; `indices` and `generator` are on the data's device.

        The same indices and the same generator state give the same batch.
        """
        ...

    def evaluation(self, split: str, batch_size: int) -> Iterator[Batch]:
        """Every sample of `split` (train, validation or test) once, not augmented, in a fixed order.

        The last batch may be short.
        """
        ...


@runtime_checkable
class ByEpoch(Protocol):
    """Data that change from epoch to epoch."""

    def begin_epoch(self, epoch: int, generator: torch.Generator) -> None:
        """Called before the first batch of each epoch, and again where a run goes on within one.

        `generator` is on the CPU and depends on the run's seed alone.
        """
        ...


class Dataset(Protocol):
    """A dataset as the configuration describes it. Constructing it reads nothing and draws nothing."""

    spec: Spec
    task: Task

    # Filled by load: which files, their checksums, whether these were verified; under "trivial", the metrics of the
    # best constant prediction, as far as they are known.
    @property
    def provenance(self) -> dict[str, Any]: ...

    def load(
        self, device: torch.device, root: Path, split_seed: int, verify: bool = True, download: bool = True
    ) -> Data:
        """Read the files under `root` (downloading what is missing if `download`), split, move to `device`.

        verify: compare checksums with the official ones; False opens repacked copies, and `provenance` says
        so. Raises DataUnavailable (a ValueError of at most three lines) where data are missing or damaged.
        """
        ...


class DataUnavailable(ConfigError):
    """Data are neither present nor obtainable, or are not what they should be.

    The message has at most three lines: what is missing, what to put where, and from where.
    """


def slices(size: int, batch_size: int) -> Iterator[slice]:
    """Consecutive slices of at most `batch_size` that cover range(size)."""
    for start in range(0, size, batch_size):
        yield slice(start, min(start + batch_size, size))
