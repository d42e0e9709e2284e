"""One worker of a tuning: does what is left of the trials, then of the winners' runs, until nothing is left.

Any number of workers may run the same command at the same time or after each other. Trials are done round by round
(trial 0 of every method, trial 1 of every method …), so that a tuning that is cut short is still a fair one.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import NamedTuple, TypeVar

from optuna.storages import BaseStorage

from clipbench.errors import RunLocked
from clipbench.runs.execute import Outcome, Say
from clipbench.tuning import files, together
from clipbench.tuning.finals import Finals
from clipbench.tuning.plan import Plan
from clipbench.tuning.storage import open_storage
from clipbench.tuning.study import Choice, Study

J = TypeVar("J", Study, Finals)
POLL = 0.5  # seconds between two looks at what other workers still do


class Result(NamedTuple):
    """What came of one method: the selected trial and its file (None where all diverged), final metrics by seed."""

    method: str
    counts: dict[str, int]
    choice: Choice | None
    path: Path | None
    finals: list[dict[str, float]]


class Worker:
    """Works on a plan; `say` gets one line for every run and for what others should know."""

    def __init__(self, plan: Plan, say: Say = print) -> None:
        self.plan, self._print = plan, say
        self.storage: BaseStorage = open_storage(plan.options.tuning.storage, plan.folder, say)
        self.studies = [Study(plan, method, self.storage) for method in plan.methods]

    def go(self) -> list[Result]:
        """Trials, selection, files, final runs."""
        retry = self.plan.options.retry == "failed"
        for study in self.studies:
            study.slots.prepare(retry)
        self._say_plan()
        together.trials(self.studies, self.plan, self._say)
        drain(self.studies, self._trial)
        chosen = [(study, study.best()) for study in self.studies]
        written = {study.method: files.write(self.plan, study.method, c) for study, c in chosen if c is not None}
        finals = {s.method: Finals(self.plan, s.method, c, self.storage) for s, c in chosen if c is not None}
        for each in finals.values():
            each.slots.prepare(retry)
        together.finals(list(finals.values()), self.plan, self._say)
        drain(list(finals.values()), self._final)
        return [
            Result(s.method, s.counts(), c, written.get(s.method), finals[s.method].results() if c else [])
            for s, c in chosen
        ]

    def _say_plan(self) -> None:
        total = sum(study.slots.count for study in self.studies)
        left = sum(len(study.slots.open()) for study in self.studies)
        finals = len(self.plan.options.tuning.final_seeds) * len(self.studies)
        self._print(f"tune {self.plan.experiment}: {total} trials, {left} to do, then up to {finals} final runs")
        for study in self.studies:
            self._print(f"  {study.method}: {study.slots.count} trials over {study.space.describe()}")

    def _say(self, line: str) -> None:
        self._print(f"  {line}")

    def _trial(self, study: Study, slot: int) -> None:
        outcome = study.attempt(slot, self._say)
        if outcome is not None:
            self._print(f"{study.method} trial {slot}: {_metric(outcome, study.metric)} ({self._left(self.studies)})")

    def _final(self, finals: Finals, slot: int) -> None:
        outcome = finals.attempt(slot, self._say)
        if outcome is not None:
            shown = ", ".join(_metric(outcome, name) for name in outcome.info["final"] if name.startswith("test_"))
            self._print(f"{finals.method} final seed {finals.seeds[slot]}: {shown or outcome.status}")

    def _left(self, studies: Sequence[Study]) -> str:
        return f"{sum(len(study.slots.open()) for study in studies)} to do"


def drain(jobs: Sequence[J], attempt: Callable[[J, int], None]) -> None:
    """Attempt every open slot, round by round, until none is open; waits for those that other workers do."""
    while True:
        rounds = zip_longest(*([(job, slot) for slot in job.slots.open()] for job in jobs))
        left = [pair for each in rounds for pair in each if pair is not None]
        if not left:
            return
        for job, slot in left:
            try:
                attempt(job, slot)
            except RunLocked:  # somebody runs this very config by hand: its record will be found later
                continue
        if any(job.slots.open() for job in jobs):
            time.sleep(POLL)


def _metric(outcome: Outcome, name: str) -> str:
    value = outcome.info.get("final", {}).get(name, math.nan)
    return f"{name} {value:.4g}" if outcome.status == "ok" else outcome.status


def summary(results: Sequence[Result]) -> list[str]:
    """Lines for the end: what was selected, and the test metrics of the final runs (mean over the seeds)."""
    lines = []
    for result in results:
        counts = ", ".join(f"{number} {kind}" for kind, number in result.counts.items() if number)
        if result.choice is None:
            lines.append(f"{result.method}: nothing to select ({counts})")
            continue
        values = ", ".join(f"{path}={value:g}" for path, value in result.choice.settings.items())
        lines.append(f"{result.method}: trial {result.choice.slot} of {counts}: {values}")
        names = sorted({name for final in result.finals for name in final if name.startswith("test_")})
        means = [f"{name} {statistics.mean(final[name] for final in result.finals):.4g}" for name in names]
        lines.append(
            f"  final runs: {len(result.finals)} ok; mean {', '.join(means)}" if means else "  no final run ended well"
        )
    return lines
