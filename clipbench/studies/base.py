"""What every study is: work in pieces, rows as its result, a state from which it goes on.

A study trains no network for its own sake; it measures something that a claim of a paper speaks of, and leaves the
same kind of record as a training run. Its rows have the split "study". A row's `step` is the quantity on
the study's horizontal axis (samples in a batch, samples in all, steps), and the metric's name says the rest:

    error/estimator=ps_clip/quantile=0.999/part=3   statistic "error" with three labels

`metric_name` writes such a name, `read_metric` takes it apart.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from clipbench.runs import memory
from clipbench.runs.finals import final_metrics
from clipbench.runs.job import Row
from clipbench.training.clock import Clock
from clipbench.training.seeding import Stream, derive


def metric_name(statistic: str, **labels: object) -> str:
    """`statistic/key=value/…` in the order given; a float is written with as many digits as it takes.

    >>> metric_name("error", estimator="mean", quantile=0.5)
    'error/estimator=mean/quantile=0.5'
    """
    return "/".join([statistic, *(f"{key}={value}" for key, value in labels.items())])


def read_metric(name: str) -> tuple[str, dict[str, str]]:
    """The statistic and the labels of a metric's name, the labels as text.

    >>> read_metric("error/estimator=mean/quantile=0.5")
    ('error', {'estimator': 'mean', 'quantile': '0.5'})
    """
    statistic, *words = name.split("/")
    return statistic, dict(word.split("=", 1) for word in words)


def random_generator(seed: int, stream: Stream, step: int = 0, part: int = 0) -> np.random.Generator:
    """A fresh numpy generator for (seed, stream, step, part): a resumed study draws what an undisturbed one would."""
    return np.random.Generator(np.random.SFC64(derive(seed, stream, step, part)))


def tensors(arrays: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    """Copies of the arrays as tensors, which a checkpoint may hold."""
    return {name: torch.from_numpy(np.array(array)) for name, array in arrays.items()}


class Study(ABC):
    """Work in `steps` pieces, `done` of them done; `rows` are the metric rows so far.

    A subclass sets `steps` in its constructor and does one piece in `advance`. Every piece is worth a checkpoint, so a
    piece should take about a second. Random draws are functions of (seed, piece).
    """

    steps: int

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.device = torch.device("cpu")
        self.done = 0
        self.rows: list[Row] = []
        self.status = "running"
        self.stopping = False
        self.clock = Clock(self.device)
        self.clock.setting_up = False  # the first piece is as much work as the others

    def about(self) -> dict[str, Any]:
        """What run.json says of the study before its first piece: it draws its own data and trains nothing."""
        return {"precision": "fp64", "samples_per_step": 0, "parameters": 0, "data": {}}

    @property
    def checkpoint_due(self) -> bool:
        """Whether something is done and something left."""
        return 0 < self.done < self.steps

    def stop(self) -> None:
        """End `run` after the piece under way."""
        self.stopping = True

    @abstractmethod
    def advance(self) -> list[Row]:
        """Do piece number `done`; its new rows."""

    @abstractmethod
    def progress(self) -> dict[str, Any]:
        """What pieces hand on to later ones: tensors and plain values."""

    @abstractmethod
    def load_progress(self, progress: dict[str, Any]) -> None:
        """Go on from what `progress` gave."""

    def run(self) -> Iterator[list[Row]]:
        """Yields the new rows after every piece, to the end or until `stop`."""
        while self.done < self.steps and not self.stopping:
            self.clock.start()
            new = self.advance()
            self.done += 1
            self.clock.stop(1)
            self.rows += new
            yield new
        if self.done >= self.steps:
            self.status = "ok"

    def finals(self) -> dict[str, dict[str, float]]:
        """The figures without labels, as "study_<metric>"; nothing is best."""
        return {"final": final_metrics(self.rows), "best": {}}

    def costs(self) -> dict[str, Any]:
        """Seconds of the pieces, the median piece's, and the most memory in use."""
        clock = self.clock
        return {
            "seconds": {"train": clock.train, "setup": clock.setup, "evaluation": clock.evaluation},
            "train_step_seconds": clock.step_seconds(), "peak_memory_bytes": memory.peak(self.device),
        }  # fmt: skip

    def row(self, step: int, metric: str, value: float, samples: int = 0) -> Row:
        """One row of the record."""
        return {
            "step": int(step), "epoch": 0.0, "samples": int(samples), "train_seconds": self.clock.train,
            "split": "study", "metric": metric, "value": float(value),
        }  # fmt: skip

    def state_dict(self) -> dict[str, Any]:
        """All that a resumed study needs to go on bit for bit."""
        return {
            "done": self.done, "rows": self.rows, "clock": self.clock.state_dict(), "progress": self.progress(),
        }  # fmt: skip

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.done, self.rows = state["done"], list(state["rows"])
        self.clock.load_state_dict(state["clock"])
        self.load_progress(state["progress"])
