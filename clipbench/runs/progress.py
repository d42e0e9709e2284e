"""A progress bar on a terminal, nothing elsewhere; it moves where the clock stands still anyway."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import Any, Protocol

from clipbench.runs.job import Row


class Advancing(Protocol):
    """A job, or a batch of runs."""

    @property
    def done(self) -> int: ...

    @property
    def steps(self) -> int: ...

    @property
    def rows(self) -> list[Row]: ...


class Progress:
    """The bar of one job, as a context."""

    def __init__(self, job: Advancing) -> None:
        from tqdm import tqdm

        self.job = job
        quiet = not sys.stderr.isatty()
        self._bar: Any = tqdm(total=job.steps, initial=job.done, unit="step", disable=quiet)

    def advance(self) -> None:
        """Show where the job stands."""
        self._bar.update(self.job.done - self._bar.n)
        losses = [row["value"] for row in self.job.rows[-12:] if row["metric"] == "loss"]
        if losses:
            self._bar.set_postfix(loss=f"{losses[-1]:.4g}", refresh=False)

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()
