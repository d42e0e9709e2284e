"""How far a job is: a bar on a terminal, elsewhere one line at each evaluation. It moves where the clock stands still.

Both go to stderr; what a command is asked for goes to stdout.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Protocol

from clipbench.runs.job import Row

PAUSE = 10.0  # seconds between two lines of a study, every piece of which has rows
SHOWN = ("loss", "accuracy")


class Advancing(Protocol):
    """A job, or a batch of runs."""

    @property
    def done(self) -> int: ...

    @property
    def steps(self) -> int: ...

    @property
    def rows(self) -> list[Row]: ...


class Progress:
    """The bar, or the lines, of one job, as a context; `lines` False where its caller says a line a run anyway."""

    def __init__(self, job: Advancing, lines: bool = True) -> None:
        from tqdm import tqdm

        self.job, self._lines = job, lines
        self._quiet = not sys.stderr.isatty()
        self._bar: Any = tqdm(total=job.steps, initial=job.done, unit="step", disable=self._quiet)
        self._first, self._began, self._said = job.done, time.monotonic(), 0.0

    def advance(self, rows: Sequence[Row] = ()) -> None:
        """Show where the job stands; `rows` are the new ones."""
        if self._quiet:
            self._line(rows)
            return
        self._bar.update(self.job.done - self._bar.n)
        losses = [row["value"] for row in self.job.rows[-12:] if row["metric"] == "loss"]
        if losses:
            self._bar.set_postfix(loss=f"{losses[-1]:.4g}", refresh=False)

    def _line(self, rows: Sequence[Row]) -> None:
        splits = {row["split"] for row in rows}
        now = time.monotonic()
        due = "study" in splits and (now - self._said >= PAUSE or self.job.done >= self.job.steps)
        if self._lines and (due or splits - {"train", "study"}):
            self._said = now
            print(
                f"step {self.job.done} of {self.job.steps}{self._left(now)}{shown(rows)}", file=sys.stderr, flush=True
            )

    def _left(self, now: float) -> str:
        """About how long the rest takes, judged by this process's own steps, evaluations included."""
        made, left = self.job.done - self._first, self.job.steps - self.job.done
        if made < 1 or left < 1:
            return ""
        return f", about {duration((now - self._began) / made * left)} left"

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()


def shown(rows: Sequence[Row]) -> str:
    """Losses and accuracies of the rows; of several runs, the range."""
    found: dict[str, list[float]] = {}
    for row in rows:
        if row["metric"] in SHOWN:
            found.setdefault(f"{row['split']} {row['metric']}", []).append(row["value"])
    words = [f"{name} {' to '.join(f'{v:.4g}' for v in sorted({min(v), max(v)}))}" for name, v in found.items()]
    return f": {', '.join(words)}" if words else ""


def duration(seconds: float) -> str:
    """Seconds in the unit that reads best."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
