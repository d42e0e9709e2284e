"""The contract of an estimator: it turns the micro-batches of one optimizer step into a gradient in `.grad`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple, Protocol

from torch import Tensor


class Estimate(NamedTuple):
    """What one optimizer step's estimator saw; all tensors 0-dim, on the device, detached.

    `loss` is the mean training loss over the step's samples. `stats` holds further figures by name
    (`sample_clipped_fraction`: share of the samples that were clipped; `dropped`: samples left out).
    """

    loss: Tensor
    stats: dict[str, Tensor]


class Estimator(Protocol):
    """Called once per optimizer step; ADDS the step's gradient to `.grad`, as `backward` does.

    `losses` yields, for each micro-batch, its per-sample losses of shape (n_m,) with their graph, computed at
    the current weights when it is asked for them. `total` is the number of samples in the whole step.
    `eager` says that the estimator reads the losses' autograd graph, which a compiled model does not show.
    """

    eager: bool

    def __call__(self, losses: Iterable[Tensor], total: int) -> Estimate: ...

    def reseed(self, seed: int) -> None: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...
