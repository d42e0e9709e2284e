"""The figures of the steps (loss, clipped share, …), gathered on the device without waiting for it."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

LAST = 25  # steps whose mean loss is a run's final train loss, as in paper 2's searches
FOLD = 32  # steps whose figures are added up at once: one call instead of 32


class Figures:
    """Sums over the steps since the last look, and the losses of the last `LAST` steps.

    Figures are kept as they come and added up in float64 every `FOLD` steps of the run, so that a resumed run, whose
    checkpoint holds what waits, adds in the same order as an undisturbed one.
    """

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._waiting: list[Mapping[str, Tensor]] = []
        self._count = 0
        self._losses: deque[Tensor] = deque(maxlen=LAST)

    def add(self, figures: Mapping[str, Tensor]) -> None:
        """One step's figures, 0-dim tensors that nobody changes later; the same names at every step."""
        self._waiting.append(figures)
        self._losses.append(figures["loss"])
        self._count += 1
        if len(self._waiting) == FOLD:
            self._fold()

    def _fold(self) -> None:
        for name in self._waiting[0] if self._waiting else ():
            total = torch.stack([each[name] for each in self._waiting]).sum(dtype=torch.float64)
            self._sums[name] = self._sums[name] + total if name in self._sums else total
        self._waiting = []

    def means(self) -> dict[str, float]:
        """Each figure's mean over the steps since the last call; waits for the device."""
        self._fold()
        means = {name: float(total) / self._count for name, total in self._sums.items()}
        self._sums, self._count = {}, 0
        return means

    def last_loss(self) -> float:
        """The mean loss of the last `LAST` steps, whatever the interval of logging; waits. NaN before the first."""
        return float(torch.stack(list(self._losses)).double().mean()) if self._losses else float("nan")

    def state_dict(self) -> dict[str, Any]:
        waiting = {
            name: torch.stack([each[name] for each in self._waiting])
            for name in (self._waiting[0] if self._waiting else ())
        }
        losses = torch.stack(list(self._losses)) if self._losses else torch.zeros(0)
        return {"sums": self._sums, "waiting": waiting, "count": self._count, "losses": losses}

    def load_state_dict(self, state: Mapping[str, Any], device: torch.device) -> None:
        self._sums = {name: value.to(device) for name, value in state["sums"].items()}
        columns = {name: value.to(device).unbind() for name, value in state["waiting"].items()}
        self._waiting = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
        self._count = state["count"]
        self._losses = deque(state["losses"].to(device).unbind(), maxlen=LAST)
