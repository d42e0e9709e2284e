"""Reference runs, shared among workers like trials are: one measures, the others read what it found."""

from __future__ import annotations

from typing import Any

from optuna.storages import BaseStorage

from clipbench.runs.execute import Say
from clipbench.tuning.leases import Leases
from clipbench.tuning.plan import Plan, words
from clipbench.tuning.reference import MeasuredRanges, ranges_of
from clipbench.tuning.study import open_study
from clipbench.wording import amount

MEASUREMENT = "measurement"


class Reference:
    """The reference run of one method of a plan, whose space holds thresholds that are to be measured."""

    def __init__(self, plan: Plan, method: str, storage: BaseStorage) -> None:
        self.plan, self.method = plan, method
        name = f"{plan.experiment}/{method}/{plan.key(method)}/reference"
        self.study = open_study(storage, name, minimise=True)
        self.leases = Leases(self.study, storage, plan.folder / name, 1)

    def attempt(self, index: int, say: Say) -> MeasuredRanges | None:
        """Measure, unless another worker does; what is found is in the storage. Raises ConfigError."""
        with self.leases.claim(index) as identity:
            if identity is None:
                return None
            space = self.plan.spaces[self.method]
            settings = space.middle()
            marks = {"role": "tune", "seed": self.plan.options.tuning.seed}
            config = self.plan.config(self.method, settings, **marks)
            found = ranges_of(config, [leaf.path for leaf in space.to_measure], settings)
            self.leases.set(identity, MEASUREMENT, found._asdict())
            self.study.tell(self.leases.trials()[index].number, 0.0)  # the bookkeeping's own value
            return found

    def result(self) -> MeasuredRanges:
        """What was found, by whichever worker."""
        stored: dict[str, Any] = self.leases.trials()[0].user_attrs[MEASUREMENT]
        ranges = {path: (float(low), float(high)) for path, (low, high) in stored["ranges"].items()}
        return MeasuredRanges(ranges, stored["values"], stored["steps"], stored["settings"])


def describe(found: MeasuredRanges) -> str:
    """One line: every range, from how many values of how many steps."""
    parts = [
        f"{path} {low:g} … {high:g} clips 98 … 2 % of {amount(found.values[path], 'value')}"
        for path, (low, high) in found.ranges.items()
    ]
    return f"{', '.join(parts)} in {amount(found.steps, 'step')} at {', '.join(words(found.settings))}"
