"""The figures of the steps, of all members."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from clipbench.training.figures import LAST


class MemberFigures:
    """As clipbench.training.figures.Figures, with (R,) tensors."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._count = 0
        self._losses: list[Tensor] = []

    def add(self, figures: Mapping[str, Tensor]) -> None:
        """One step's figures, (R,) each; the same names at every step."""
        if self._sums:
            torch._foreach_add_(list(self._sums.values()), [figures[name] for name in self._sums])
        else:
            self._sums = {name: value.clone() for name, value in figures.items()}
        self._count += 1
        self._losses = [*self._losses[1 - LAST :], figures["loss"]]

    def means(self) -> dict[str, list[float]]:
        """Each figure's mean over the steps since the last call, member by member; waits for the device."""
        means = {name: [total / self._count for total in sums.tolist()] for name, sums in self._sums.items()}
        self._sums, self._count = {}, 0
        return means

    def last_losses(self) -> list[float]:
        """Each member's mean loss over the last `LAST` steps; waits."""
        found: list[float] = torch.stack(self._losses).double().mean(0).tolist()
        return found

    def state_dict(self) -> dict[str, Any]:
        return {"sums": self._sums, "count": self._count, "losses": self._losses}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._sums, self._count, self._losses = dict(state["sums"]), state["count"], list(state["losses"])
