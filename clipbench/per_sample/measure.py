"""Measuring who owns the rows that no proof covers: samples brought level, lost rows told by the operations."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from clipbench.per_sample.balance import Sizes, largest, level
from clipbench.per_sample.dependence import track_owners
from clipbench.per_sample.layout import SHARED, Layout, Segments
from clipbench.per_sample.opaque import Nonlinear
from clipbench.per_sample.owners import whole
from clipbench.per_sample.probe import LOST, Deltas, Probe, backward_to
from clipbench.per_sample.rules import Use
from clipbench.per_sample.spelling import Unprovable

ROUNDS = 4
"""Measurements at most, each with the samples brought level by the one before."""


class Measurement:
    """One step's losses (n,), the uses in question with their δ, and those whose layouts are known."""

    def __init__(self, losses: Tensor, uses: Sequence[Use], deltas: Deltas, known: Sequence[object]) -> None:
        self.losses = losses
        self.n = losses.shape[0]
        self.settled = [
            (use, found, layout)
            for use, found, layout in zip(uses, deltas, known, strict=True)
            if isinstance(layout, (Layout, Segments))
        ]
        self.open = [i for i, layout in enumerate(known) if layout == "measure"]
        self.uses = [uses[i] for i in self.open]
        self.deltas: Deltas = [deltas[i] for i in self.open]
        self.weights = torch.ones(self.n, dtype=torch.float64, device="cpu")

    def owners(self, probe: Probe) -> list[Tensor]:
        """Owners of the rows of every open use (see `Use.marks`), on the CPU. Keeps the graph."""
        sizes = Sizes(self.n)
        numbers = torch.arange(1, self.n + 1, device="cpu")
        for use, deltas, layout in self.settled:
            marks = use.marks(deltas)
            owners = layout.spread(numbers, use.rows)  # type: ignore[attr-defined]
            if len(marks) == len(owners):
                sizes.add(marks, owners)
        plain = sizes.samples
        self._weigh(level(self.weights, plain, self.losses.dtype))
        for _ in range(ROUNDS):
            found = probe.owners(self.losses, self.uses, self.deltas, self.weights)
            if not self._weigh(level(self.weights, self._seen(plain, found), self.losses.dtype)):
                break
        return self._told(found)

    def _seen(self, plain: Tensor, owners: Sequence[Tensor]) -> Tensor:
        """Sizes (n,) under these weights, from rows settled or just measured; of all others together for the rest."""
        sizes = Sizes(self.n)
        for use, deltas, found in zip(self.uses, self.deltas, owners, strict=True):
            sizes.add(use.marks(deltas), found)
        seen = torch.maximum(sizes.samples, plain * self.weights)
        hidden = seen == 0
        if bool(hidden.any()) and not bool(hidden.all()):
            alone = backward_to(self.uses, self.losses, (self.weights * hidden).to(self.losses), retain_graph=True)
            top = largest([use.marks(deltas) for use, deltas in zip(self.uses, alone, strict=True)])
            seen = torch.where(hidden, top, seen)
        return seen

    def _weigh(self, weights: Tensor | None) -> bool:
        """Take new weights, and the gradients under them; whether there are any."""
        if weights is None:
            return False
        self.weights = weights
        self.deltas = backward_to(self.uses, self.losses, weights.to(self.losses), retain_graph=True)
        return True

    def _told(self, owners: list[Tensor]) -> list[Tensor]:
        """Rows that are not finite belong to whom the operations of this very step say, whatever they hold.

        So do rows that samples seem to share: an operation (a logarithm) may round other numbers otherwise.
        """
        if not any(bool(((found == LOST) | (found == SHARED)).any()) for found in owners):
            return owners
        try:
            told = rows_by_operations(self.losses, self.uses)
        except Nonlinear:
            return owners
        if told is None:
            return owners
        return [
            torch.where((found == LOST) | (found == SHARED), rows, found)
            for found, rows in zip(owners, told, strict=True)
        ]


def rows_by_operations(losses: Tensor, uses: Sequence[Use], moving: bool = False) -> list[Tensor] | None:
    """Owners of every use's rows by a proof from the graph (see `dependence`), on the CPU; None where there is none.

    moving: whether it is to hold wherever the data may move rows, or for this step's indices alone. Raises Nonlinear
    where a function of the user's own is seen not to be linear.
    """
    edges = [edge for use in uses for edge in use.edges]
    try:
        owners = track_owners(losses, edges, moving)
    except Nonlinear:
        raise
    except (Unprovable, RuntimeError, TypeError, ValueError, AttributeError):
        # Whatever an operation made of the numbers it was tried on: what is not proven is measured.
        return None
    rows, at = [], 0
    with _disable_current_modes():  # owners have values even where nothing else has
        for use in uses:
            rows.append(whole(use.marks(owners[at : at + len(use.edges)])).cpu())
            at += len(use.edges)
    return rows
