"""The study of one method: its trials, what each came to, and which one is selected."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import optuna
from optuna.exceptions import DuplicatedStudyError
from optuna.pruners import BasePruner, MedianPruner, NopPruner
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState

from clipbench.errors import ConfigError, RecordError, Stopped
from clipbench.runs.execute import Outcome, Say, execute
from clipbench.runs.job import Row
from clipbench.tuning.plan import Plan
from clipbench.tuning.sampler import of_slot, sampler, suggest
from clipbench.tuning.slots import Slots

PRUNE_AFTER = 0.25  # share of a trial's steps that is never pruned; our choice
PRUNE_TRIALS = 5  # trials that are never pruned, as Optuna's default


class Choice(NamedTuple):
    """A selected trial: its number, its value and settings, how many trials there were, and when the last ended."""

    slot: int
    value: float
    settings: dict[str, Any]
    counts: dict[str, int]
    ended: str


class Study:
    """The trials of one method under a plan."""

    def __init__(self, plan: Plan, method: str, storage: BaseStorage) -> None:
        self.plan, self.method, self.space = plan, method, plan.spaces[method]
        self.tuning = plan.options.tuning
        self.metric = self.tuning.metric
        self.minimise = self.metric.endswith("loss")
        self.worst = math.inf if self.minimise else -math.inf
        name = f"{plan.experiment}/{method}/{plan.keys[method]}"
        self.study = open_study(storage, name, self.minimise, self._pruner())
        self.slots = Slots(self.study, storage, plan.folder / name, plan.trials[method])

    def _pruner(self) -> BasePruner:
        if self.tuning.pruner == "none":
            return NopPruner()
        return MedianPruner(n_startup_trials=PRUNE_TRIALS)

    def attempt(self, slot: int, say: Say) -> Outcome | None:
        """Run the slot's trial to its end unless it is another worker's; None where nothing was done here.

        Raises ConfigError, RecordError and Interrupted; any other error is the trial's own and counts against it.
        """
        with self.slots.claim(slot) as identity:
            if identity is None:
                return None
            self.study.sampler = sampler(self.tuning.sampler, self.space, slot, self.tuning.seed)
            trial = optuna.Trial(self.study, identity)
            settings = self.plan.settings(self.method, suggest(trial, self.space.ranges))
            config = self.plan.config(self.method, settings, role="tune", trial=slot, seed=self.tuning.seed)
            try:
                outcome = execute(config, say, self._watch(trial, config))
            except Stopped:
                self.study.tell(trial, state=TrialState.PRUNED)
                say(f"{self.method} trial {slot}: pruned")
                return None
            except (ConfigError, RecordError):
                raise
            except Exception as error:
                trial.set_user_attr("error", f"{type(error).__name__}: {error}".splitlines()[0])
                self.study.tell(trial, state=TrialState.FAIL)
                say(f"{self.method} trial {slot} failed: {type(error).__name__}: {error}".splitlines()[0])
                return None
            trial.set_user_attr("run_id", outcome.info["run_id"])
            trial.set_user_attr("status", outcome.status)
            if outcome.status == "failed":  # found so, with retry=never
                self.study.tell(trial, state=TrialState.FAIL)
            else:
                self.study.tell(trial, self.value(outcome))
            return outcome

    def config(self, slot: int) -> dict[str, Any]:
        """The config of the slot's trial, which the sequence names before any trial has ended."""
        settings = self.plan.settings(self.method, of_slot(self.space, slot))
        return self.plan.config(self.method, settings, role="tune", trial=slot, seed=self.tuning.seed)

    def _watch(self, trial: optuna.Trial, config: dict[str, Any]) -> Any:
        if self.tuning.pruner == "none":
            return None
        split, _, metric = self.metric.partition("_")
        total = config["steps"]

        def watch(rows: list[Row]) -> bool:
            found = [row for row in rows if row["split"] == split and row["metric"] == metric]
            for row in found:
                value = row["value"] if math.isfinite(row["value"]) else self.worst
                trial.report(value, row["step"])
            late = bool(found) and (total is None or found[-1]["step"] >= PRUNE_AFTER * total)
            return late and trial.should_prune()

        return watch

    def value(self, outcome: Outcome) -> float:
        """What the trial came to: the last value of the metric, or the worst there is where it diverged."""
        final = outcome.info.get("final", {})
        if outcome.status != "ok":
            return self.worst
        if self.metric not in final:
            known = ", ".join(sorted(name for name in final if name.startswith("validation_")))
            raise ConfigError(f"tuning.metric must be one of {known}, got {self.metric}")
        return float(final[self.metric]) if math.isfinite(final[self.metric]) else self.worst

    def counts(self) -> dict[str, int]:
        """Trials by how they ended: ok, diverged, failed, pruned, open."""
        counts = dict.fromkeys(("ok", "diverged", "failed", "pruned", "open"), 0)
        for slot in range(self.slots.count):
            counts[_ended(self.slots.trials().get(slot))] += 1
        return counts

    def best(self) -> Choice | None:
        """The best trial, the first one among equals; None where no trial came to a finite value."""
        done = {k: t for k, t in self.slots.trials().items() if t.state is TrialState.COMPLETE and t.value is not None}
        finite = {k: t for k, t in done.items() if math.isfinite(t.values[0])}
        if not finite:
            return None
        sign = 1.0 if self.minimise else -1.0
        slot, trial = min(finite.items(), key=lambda item: (sign * item[1].values[0], item[0]))
        ended = max(str(t.datetime_complete or "")[:10] for t in done.values())
        return Choice(slot, trial.values[0], self.plan.settings(self.method, trial.params), self.counts(), ended)


def _ended(trial: FrozenTrial | None) -> str:
    if trial is None or not trial.state.is_finished():
        return "open"
    if trial.state is TrialState.COMPLETE:
        return str(trial.user_attrs.get("status", "ok"))
    return "pruned" if trial.state is TrialState.PRUNED else "failed"


def open_study(storage: BaseStorage, name: str, minimise: bool, pruner: BasePruner | None = None) -> optuna.Study:
    """The study of that name, made where it is not there."""
    direction = "minimize" if minimise else "maximize"
    for _ in range(5):
        try:
            return optuna.create_study(
                storage=storage, study_name=name, direction=direction, pruner=pruner, load_if_exists=True
            )
        except DuplicatedStudyError:  # another worker made it between the look and the leap
            continue
    return optuna.load_study(storage=storage, study_name=name, pruner=pruner)
