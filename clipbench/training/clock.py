"""The clock counts training only: forward, backward, clipping, optimizer and making the batch.

The device is synchronised where the clock starts and where it stops, never in between, so that a GPU's queue
stays full. The first step of a process (allocation, autotuning, compilation) goes to `setup`, not to `train`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch


def synchronize(device: torch.device | str) -> None:
    """Wait until the device has finished its queued work (nothing to wait for on a CPU)."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


class Clock:
    """Stop watch of a run, in seconds.

    `train` is the sum of all timed steps but each process's first, which is in `setup`; `intervals` holds
    (seconds, steps) of every stretch between a start and a stop, for the median time of one step.
    """

    def __init__(self, device: torch.device, now: Callable[[], float] = time.perf_counter) -> None:
        self.device = device
        self.train = 0.0
        self.setup = 0.0
        self.evaluation = 0.0
        self.intervals: list[tuple[float, int]] = []
        self._now = now
        self._started: float | None = None
        self.setting_up = True  # until the first step of this process is done

    def start(self) -> None:
        """Start timing; the device's queue is empty from here on."""
        synchronize(self.device)
        self._started = self._now()

    def stop(self, steps: int) -> None:
        """Stop timing after `steps` steps; ValueError where the clock was not started."""
        synchronize(self.device)
        if self._started is None:
            raise ValueError("start must be called before stop")
        # A clock that was set back must not take seconds away again.
        seconds = max(0.0, self._now() - self._started)
        self._started = None
        if self.setting_up:
            self.setup += seconds
            self.setting_up = False
        elif steps:
            self.train += seconds
            self.intervals.append((seconds, steps))

    def step_seconds(self) -> float:
        """Median over the stretches of seconds per step; NaN where nothing was timed yet."""
        rates = sorted(seconds / steps for seconds, steps in self.intervals)
        if not rates:
            return float("nan")
        middle = len(rates) // 2
        return rates[middle] if len(rates) % 2 else (rates[middle - 1] + rates[middle]) / 2

    def state_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("train", "setup", "evaluation", "intervals")}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.train, self.setup, self.evaluation = state["train"], state["setup"], state["evaluation"]
        self.intervals = [(float(seconds), int(steps)) for seconds, steps in state["intervals"]]
