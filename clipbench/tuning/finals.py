"""The winners' runs: the selected settings of a method on fresh seeds, with the test metric, once each."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from optuna.storages import BaseStorage
from optuna.trial import TrialState

from clipbench.config.environment import hidden
from clipbench.errors import ConfigError, RecordError
from clipbench.runs.execute import Outcome, Say, execute
from clipbench.tuning.files import mark
from clipbench.tuning.leases import Leases
from clipbench.tuning.plan import BASELINE, Plan
from clipbench.tuning.study import Choice, open_study


class Finals:
    """One run for each of the plan's final seeds, shared among workers like trials are."""

    def __init__(self, plan: Plan, method: str, choice: Choice, storage: BaseStorage) -> None:
        self.plan, self.method, self.choice = plan, method, choice
        self.seeds = plan.options.tuning.final_seeds
        seeds = "-".join(str(seed) for seed in self.seeds)
        # Settings are told apart by their digest: those of a method that is its baseline change with the baseline's.
        digest = hashlib.sha256(json.dumps([choice.method, choice.settings]).encode()).hexdigest()[:8]
        key = plan.key(plan.like.get(method, method))
        name = f"{plan.experiment}/{method}/{key}/final-of-{choice.trial}-{digest}-seeds-{seeds}"
        self.study = open_study(storage, name, minimise=True)
        self.leases = Leases(self.study, storage, plan.folder / name, len(self.seeds))

    def attempt(self, index: int, say: Say) -> Outcome | None:
        """Run the seed at `index` unless it is another worker's; None where nothing was done here.

        Raises ConfigError, RecordError and Interrupted; a run that fails otherwise is recorded and counted as failed.
        """
        with self.leases.claim(index) as identity:
            if identity is None:
                return None
            trial = self.leases.trials()[index].number
            seed = self.seeds[index]
            config = self.config(seed)
            try:
                outcome = execute(config, say)
            except (ConfigError, RecordError):
                raise
            except Exception as error:
                self.study.tell(trial, state=TrialState.FAIL)
                why = hidden(f"{type(error).__name__}: {error}").splitlines()[0]
                say(f"{self.method} final seed {seed} failed: {why}")
                return None
            self.leases.set(identity, "seed", seed)
            self.leases.set(identity, "status", outcome.status)
            self.leases.set(identity, "run_id", outcome.info["run_id"])
            self.leases.set(identity, "final", outcome.info.get("final", {}))
            self.study.tell(trial, 0.0)  # the bookkeeping's own value: selection is over
            return outcome

    def config(self, seed: int) -> dict[str, Any]:
        """The config of a final run; one of a method that is its baseline is the baseline's own, and found."""
        method = self.method if self.choice.method != BASELINE else BASELINE
        config = self.plan.config(method, self.choice.settings, role="final", trial=None, seed=seed)
        return config | {"tuned": mark(self.plan, self.choice)}

    def results(self) -> list[dict[str, float]]:
        """The final metrics of every seed whose run ended well."""
        trials = self.leases.trials().values()
        return [t.user_attrs["final"] for t in trials if t.user_attrs.get("status") == "ok"]

    def run_ids(self) -> list[str]:
        """The ids of the final runs."""
        return [str(t.user_attrs["run_id"]) for t in self.leases.trials().values() if "run_id" in t.user_attrs]
