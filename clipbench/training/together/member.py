"""What the batch knows of one member for its record: a `clipbench.runs.job.Report`."""

from __future__ import annotations

import math
from typing import Any

from clipbench.runs import memory
from clipbench.runs.job import Row
from clipbench.training.clock import Clock
from clipbench.training.finals import finals
from clipbench.training.setup import Setup


class Member:
    """One run of a batch of `size`, whose seconds are the program's share; data: what its record says of them."""

    def __init__(self, setup: Setup, size: int, clock: Clock, steps_per_epoch: int, data: dict[str, Any]) -> None:
        self.setup, self.size, self.clock, self.data = setup, size, clock, data
        self.device, self.steps = setup.device, setup.steps
        self.status = "running"
        self.done = 0
        self.rows: list[Row] = []
        self.last_loss = math.nan
        self._steps_per_epoch = steps_per_epoch
        self._costs: dict[str, Any] | None = None

    def add(self, step: int, split: str, values: dict[str, float]) -> list[Row]:
        """Keep new metric values, those at `step`; returns their rows."""
        new: list[Row] = [
            {
                "step": step, "epoch": step / self._steps_per_epoch, "samples": step * self.setup.samples_per_step,
                "train_seconds": self.clock.train / self.size, "split": split, "metric": name, "value": value,
            }
            for name, value in values.items()
        ]  # fmt: skip
        self.rows += new
        return new

    def leave(self, status: str, step: int, last_loss: float) -> None:
        """End here; what it has cost so far is what it cost."""
        self.status, self.done, self.last_loss = status, step, last_loss
        self._costs = self.costs()

    def about(self) -> dict[str, Any]:
        """What run.json says before the first step."""
        return {
            "samples_per_step": self.setup.samples_per_step,
            "parameters": sum(parameter.numel() for _, parameter in self.setup.parameters()),
            "data": self.data, "together": self.size,
        }  # fmt: skip

    def finals(self) -> dict[str, dict[str, float]]:
        """Last and best metrics, as a lone run's."""
        return finals(self.rows, self.last_loss, self.status)

    def costs(self) -> dict[str, Any]:
        """The program's seconds divided by its members; its memory as a whole."""
        if self._costs is not None:
            return self._costs
        clock = self.clock
        seconds = {"train": clock.train, "setup": clock.setup, "evaluation": clock.evaluation}
        return {
            "seconds": {name: value / self.size for name, value in seconds.items()},
            "train_step_seconds": clock.step_seconds() / self.size,
            "peak_memory_bytes": memory.peak(self.device),
        }

    def state_dict(self) -> dict[str, Any]:
        return {
            "status": self.status, "done": self.done, "rows": self.rows,
            "last_loss": self.last_loss, "costs": self._costs,
        }  # fmt: skip

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.status, self.done, self.rows = state["status"], state["done"], list(state["rows"])
        self.last_loss, self._costs = state["last_loss"], state["costs"]
