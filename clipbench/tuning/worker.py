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
from clipbench.tuning.metric import check_metric
from clipbench.tuning.plan import BASELINE, Plan
from clipbench.tuning.reference_runs import Reference, describe
from clipbench.tuning.storage import open_storage
from clipbench.tuning.study import Choice, Study, with_baseline_settings
from clipbench.wording import amount

J = TypeVar("J", Study, Finals, Reference)
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
        self._print = say
        check_metric(plan.bases[BASELINE], plan.options)
        self.storage: BaseStorage = open_storage(plan.options.tuning.storage, plan.folder, say)
        self.retry = plan.options.retry == "failed"
        self.plan = self._measured(plan)
        self.studies = [Study(self.plan, method, self.storage) for method in self.plan.methods]

    def _measured(self, plan: Plan) -> Plan:
        """The plan with the ranges that reference runs find, and its file."""
        references = [Reference(plan, m, self.storage) for m in plan.methods if plan.spaces[m].to_measure]
        for each in references:
            each.leases.prepare(self.retry)
        drain(references, lambda reference, index: reference.attempt(index, self._say))
        found = {each.method: each.result() for each in references}
        for method, measurement in found.items():
            self._say(f"measured for {method}: {describe(measurement)}")
        ready = plan.with_measured({method: measurement.ranges for method, measurement in found.items()})
        files.write_plan(ready, found)
        return ready

    def go(self) -> list[Result]:
        """Trials, selection, files, final runs."""
        for study in self.studies:
            study.leases.prepare(self.retry)
        self._say_plan()
        together.trials(self.studies, self.plan, self._say)
        drain(self.studies, self._trial)
        chosen = self._choices()
        written = {method: files.write(self.plan, method, choice) for method, choice in chosen.items()}
        finals = {method: Finals(self.plan, method, choice, self.storage) for method, choice in chosen.items()}
        for each in finals.values():
            each.leases.prepare(self.retry)
        together.finals(list(finals.values()), self.plan, self._say)
        drain(list(finals.values()), self._final)
        files.write_selection(self.plan, chosen, {method: each.run_ids() for method, each in finals.items()})
        counts = {study.method: study.counts() for study in self.studies}
        return [
            Result(
                m,
                counts[self.plan.like.get(m, m)],
                chosen.get(m),
                written.get(m),
                finals[m].results() if m in finals else [],
            )
            for m in (*self.plan.methods, *self.plan.like)
        ]

    def _choices(self) -> dict[str, Choice]:
        """The selected trial of every method that has one, those that take another's settings after the others."""
        best = {study.method: study.best() for study in self.studies}
        found = with_baseline_settings(
            {method: choice for method, choice in best.items() if choice is not None}, self.plan
        )
        taken = {method: found[other] for method, other in self.plan.like.items() if other in found}
        return found | {
            method: choice if choice.method == BASELINE else choice._replace(method=method)
            for method, choice in taken.items()
        }

    def _say_plan(self) -> None:
        total = sum(study.leases.count for study in self.studies)
        left = sum(len(study.leases.open()) for study in self.studies)
        finals = len(self.plan.options.tuning.final_seeds) * (len(self.studies) + len(self.plan.like))
        after = amount(finals, "final run")
        self._print(f"tune {self.plan.experiment}: {amount(total, 'trial')}, {left} to do, then up to {after}")
        for study in self.studies:
            shared = f" ({study.shared} of them its baseline's)" if study.shared else ""
            self._print(
                f"  {study.method}: {amount(study.leases.count, 'trial')}{shared} over {study.space.describe()}"
            )

    def _say(self, line: str) -> None:
        self._print(f"  {line}")

    def _trial(self, study: Study, index: int) -> None:
        outcome = study.attempt(index, self._say)
        if outcome is not None:
            self._print(f"{study.method} trial {index}: {_metric(outcome, study.metric)} ({self._left(self.studies)})")

    def _final(self, finals: Finals, index: int) -> None:
        outcome = finals.attempt(index, self._say)
        if outcome is not None:
            shown = ", ".join(_metric(outcome, name) for name in outcome.info["final"] if name.startswith("test_"))
            self._print(f"{finals.method} final seed {finals.seeds[index]}: {shown or outcome.status}")

    def _left(self, studies: Sequence[Study]) -> str:
        return f"{sum(len(study.leases.open()) for study in studies)} to do"


def drain(jobs: Sequence[J], attempt: Callable[[J, int], object]) -> None:
    """Attempt every open index, round by round, until none is open; waits for those that other workers do."""
    while True:
        rounds = zip_longest(*([(job, index) for index in job.leases.open()] for job in jobs))
        left = [pair for each in rounds for pair in each if pair is not None]
        if not left:
            return
        for job, index in left:
            try:
                attempt(job, index)
            except RunLocked:  # somebody runs this very config by hand: its record will be found later
                continue
        if any(job.leases.open() for job in jobs):
            time.sleep(POLL)


def _metric(outcome: Outcome, name: str) -> str:
    value = outcome.info.get("final", {}).get(name, math.nan)
    return f"{name} {value:.4g}" if outcome.status == "ok" else outcome.status


def _selection_line(method: str, choice: Choice) -> str:
    counts = ", ".join(f"{number} {kind}" for kind, number in choice.counts.items() if number)
    values = ", ".join(f"{path}={value:g}" for path, value in choice.settings.items())
    share = "" if choice.share is None else f", clipped {100 * choice.share:.3g} %"
    same = f"; it IS its baseline, {BASELINE}" if files.is_baseline(method, choice) else ""
    return f"trial {choice.trial} of {counts}{share}{same}: {values}"


def summary(results: Sequence[Result]) -> list[str]:
    """Lines for the end: what was selected, and the test metrics of the final runs (mean over the seeds)."""
    lines = []
    for result in results:
        counts = ", ".join(f"{number} {kind}" for kind, number in result.counts.items() if number)
        if result.choice is None:
            lines.append(f"{result.method}: nothing to select ({counts})")
            continue
        lines.append(f"{result.method}: {_selection_line(result.method, result.choice)}")
        names = sorted({name for final in result.finals for name in final if name.startswith("test_")})
        means = [f"{name} {statistics.mean(final[name] for final in result.finals):.4g}" for name in names]
        lines.append(
            f"  final runs: {len(result.finals)} ok; mean {', '.join(means)}" if means else "  no final run ended well"
        )
    return lines
