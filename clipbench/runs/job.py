"""What a run does between its first step and its last: the protocol that a training and a study share."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

Row = dict[str, Any]


class Report(Protocol):
    """What a record tells of a run: of a job under way, or of one member of a batch of runs.

    `status` is "running", and at the end "ok" or "diverged"; `done` of `steps` steps are completed; `rows` are the
    metric rows so far, with the columns of metrics.parquet.
    """

    status: str
    done: int
    steps: int
    device: Any
    rows: list[Row]

    def about(self) -> dict[str, Any]:
        """Entries of run.json that are known before the first step.

        At least `method`, `dataset`, `model`, `optimizer` (names or None), `device`, `steps` and `data`.
        """
        ...

    def finals(self) -> dict[str, dict[str, float]]:
        """`final` and `best`: metrics by "<split>_<metric>"."""
        ...

    def costs(self) -> dict[str, Any]:
        """`seconds` (train, setup, evaluation), `train_step_seconds` and `peak_memory_bytes`."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain containers with which a fresh job goes on bit for bit."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class Job(Report, Protocol):
    """A training (`training.trainer.Trainer`) or a study (`clipbench.studies`)."""

    @property
    def checkpoint_due(self) -> bool:
        """Whether a checkpoint should be written where the job stands now."""
        ...

    def run(self) -> Iterator[list[Row]]:
        """Go on to the end, to divergence or until `stop`, yielding the new rows whenever the clock stands still."""
        ...

    def stop(self) -> None:
        """End `run` within a step; safe to call from a signal handler."""
        ...
