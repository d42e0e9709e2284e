"""The figures of the steps (loss, clipped share, …), gathered on the device without waiting for it."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

LAST = 25  # steps whose mean loss is a run's final train loss, as in paper 2's searches


class Figures:
    """Sums over the steps since the last look, and the losses of the last `LAST` steps."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._count = 0
        self._losses: deque[Tensor] = deque(maxlen=LAST)

    def add(self, figures: Mapping[str, Tensor]) -> None:
        """One step's figures, 0-dim tensors; the same names at every step."""
        if self._sums:
            torch._foreach_add_(list(self._sums.values()), [figures[name] for name in self._sums])
        else:
            self._sums = {name: value.clone() for name, value in figures.items()}
        self._count += 1
        self._losses.append(figures["loss"])

    def means(self) -> dict[str, float]:
        """Each figure's mean over the steps since the last call; waits for the device."""
        means = {name: float(total) / self._count for name, total in self._sums.items()}
        self._sums, self._count = {}, 0
        return means

    def last_loss(self) -> float:
        """The mean loss of the last `LAST` steps, whatever the interval of logging; waits. NaN before the first."""
        return float(torch.stack(list(self._losses)).double().mean()) if self._losses else float("nan")

    def state_dict(self) -> dict[str, Any]:
        losses = torch.stack(list(self._losses)) if self._losses else torch.zeros(0)
        return {"sums": self._sums, "count": self._count, "losses": losses}

    def load_state_dict(self, state: Mapping[str, Any], device: torch.device) -> None:
        self._sums = {name: value.to(device) for name, value in state["sums"].items()}
        self._count = state["count"]
        self._losses = deque(state["losses"].to(device).unbind(), maxlen=LAST)
