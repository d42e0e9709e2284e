"""The study of one method: its trials, what each came to, and which one is selected."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import optuna
from optuna.exceptions import DuplicatedStudyError
from optuna.pruners import BasePruner, MedianPruner, NopPruner
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState

from clipbench.config.environment import hidden
from clipbench.errors import ConfigError, RecordError, Stopped
from clipbench.runs.execute import Outcome, Say, execute
from clipbench.runs.job import Row
from clipbench.tuning.leases import Leases
from clipbench.tuning.plan import BASELINE, Plan, acts_below_threshold, counts_below_layers
from clipbench.tuning.sampler import sampler, suggest, values_at

PRUNE_AFTER = 0.25  # share of a trial's steps that is never pruned; our choice
PRUNE_TRIALS = 5  # trials that are never pruned, as Optuna's default


IDLE = 0.01  # a winner that clips less than this share of steps, samples or layers IS its baseline


class Choice(NamedTuple):
    """A selected trial: its number, its value and settings, how many trials there were, and when the last ended.

    method: whose settings they are: the method's own or, where it is its baseline (one of the baseline's trials is the
    best, or the best one clips under 1 %), the baseline's.  share: that the best trial clipped; None where unknown.
    """

    trial: int
    value: float
    settings: dict[str, Any]
    counts: dict[str, int]
    ended: str
    method: str
    share: float | None


class Study:
    """The trials of one method under a plan."""

    def __init__(self, plan: Plan, method: str, storage: BaseStorage) -> None:
        self.plan, self.method, self.space = plan, method, plan.spaces[method]
        self.tuning = plan.options.tuning
        self.metric = self.tuning.metric
        self.minimise = self.metric.endswith("loss")
        self.worst = math.inf if self.minimise else -math.inf
        self.shared = plan.baseline_trials(method)
        name = f"{plan.experiment}/{method}/{plan.key(method)}"
        self.study = open_study(storage, name, self.minimise, self._pruner())
        self.leases = Leases(self.study, storage, plan.folder / name, plan.trials[method])

    def _pruner(self) -> BasePruner:
        if self.tuning.pruner == "none":
            return NopPruner()
        return MedianPruner(n_startup_trials=PRUNE_TRIALS)

    def attempt(self, index: int, say: Say) -> Outcome | None:
        """Run the trial at `index` to its end unless it is another worker's; None where nothing was done here.

        Raises ConfigError, RecordError and Interrupted; any other error is the trial's own and counts against it.
        """
        with self.leases.claim(index) as identity:
            if identity is None:
                return None
            trial, config = self._begin(index, identity)
            try:
                outcome = execute(config, say, self._watch(trial, config))
            except Stopped:
                self.study.tell(trial, state=TrialState.PRUNED)
                say(f"{self.method} trial {index}: pruned")
                return None
            except (ConfigError, RecordError):
                raise
            except Exception as error:
                why = hidden(f"{type(error).__name__}: {error}").splitlines()[0]
                trial.set_user_attr("error", why)
                self.study.tell(trial, state=TrialState.FAIL)
                say(f"{self.method} trial {index} failed: {why}")
                return None
            trial.set_user_attr("run_id", outcome.info["run_id"])
            trial.set_user_attr("status", outcome.status)
            trial.set_user_attr("share", outcome.info.get("final", {}).get("train_share_clipped"))
            if outcome.status == "failed":  # found so, with retry=never
                self.study.tell(trial, state=TrialState.FAIL)
            else:
                self.study.tell(trial, self.value(outcome))
            return outcome

    def _owner(self, index: int) -> str:
        """The method that the trial at `index` runs: the baseline in the first ones of a clipped method."""
        return BASELINE if index < self.shared else self.method

    def _begin(self, index: int, identity: int) -> tuple[optuna.Trial, dict[str, Any]]:
        """The trial at `index` in Optuna, with its values, and the config of its run."""
        owner = self._owner(index)
        space = self.plan.spaces[owner]
        self.study.sampler = sampler(self.tuning.sampler, space, index, self.tuning.seed)
        trial = optuna.Trial(self.study, identity)
        settings = self.plan.settings(owner, suggest(trial, space.ranges))
        return trial, self.plan.config(owner, settings, role="tune", trial=index, seed=self.tuning.seed)

    def config(self, index: int) -> dict[str, Any]:
        """The config of the trial at `index`, which the sequence names before any trial has ended."""
        owner = self._owner(index)
        settings = self.plan.settings(owner, values_at(self.plan.spaces[owner], index))
        return self.plan.config(owner, settings, role="tune", trial=index, seed=self.tuning.seed)

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
            kinds = ("validation_", "study_", "train_loss")
            known = ", ".join(sorted(name for name in final if name.startswith(kinds))) or "none (its runs have none)"
            raise ConfigError(f"tuning.metric must be one of {known}, got {self.metric}")
        return float(final[self.metric]) if math.isfinite(final[self.metric]) else self.worst

    def counts(self) -> dict[str, int]:
        """Trials by how they ended: ok, diverged, failed, pruned, open."""
        counts = dict.fromkeys(("ok", "diverged", "failed", "pruned", "open"), 0)
        for index in range(self.leases.count):
            counts[_ended(self.leases.trials().get(index))] += 1
        return counts

    def best(self) -> Choice | None:
        """The best trial, the first one among equals; None where no trial came to a finite value."""
        done = {k: t for k, t in self.leases.trials().items() if t.state is TrialState.COMPLETE and t.value is not None}
        finite = {k: t for k, t in done.items() if math.isfinite(t.values[0])}
        if not finite:
            return None
        sign = 1.0 if self.minimise else -1.0
        index, trial = min(finite.items(), key=lambda item: (sign * item[1].values[0], item[0]))
        ended = max(str(t.datetime_complete or "")[:10] for t in done.values())
        owner, share = self._owner(index), trial.user_attrs.get("share")
        settings = self.plan.settings(owner, trial.params)
        return Choice(index, trial.values[0], settings, self.counts(), ended, owner, share)


def with_baseline_settings(choices: Mapping[str, Choice], plan: Plan) -> dict[str, Choice]:
    """The choices where a method that is its baseline has the baseline's own best settings, if that was tuned too.

    Under 1 % is its baseline only of samples, steps and layers: of entries, a few may decide. Nothing at all is anyway.
    """
    found = {}
    for method, choice in choices.items():
        node = plan.bases[method]["method"]
        idle = method != BASELINE and choice.share is not None and choice.share < IDLE
        idle = idle and not acts_below_threshold(node) and (choice.share == 0 or not counts_below_layers(node))
        if idle or choice.method != method:
            own = choices.get(BASELINE)
            params = own.settings if own is not None else baseline_part(choice.settings, plan)
            choice = choice._replace(method=BASELINE, settings=params)
        found[method] = choice
    return found


def baseline_part(settings: Mapping[str, Any], plan: Plan) -> dict[str, Any]:
    """Those of a method's settings that its baseline has too."""
    return {path: value for path, value in settings.items() if not path.startswith("method.")}


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
