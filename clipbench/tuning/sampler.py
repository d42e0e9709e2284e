"""Optuna samplers: the sequence (the default), and TPE after a start from the sequence."""

from __future__ import annotations

from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, TPESampler
from optuna.trial import FrozenTrial

from clipbench.training.seeding import derive
from clipbench.tuning.sequence import point
from clipbench.tuning.space import Range, Space

STARTUP = 10  # Optuna's own number of trials before TPE believes its model


class SequenceSampler(BaseSampler):  # type: ignore[misc]  # Optuna is checked without its types
    """Values by the number of the trial's slot: no history, no state, the same for every worker."""

    def __init__(self, space: Space, slot: int) -> None:
        self._values = of_slot(space, slot)

    def infer_relative_search_space(self, study: Any, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """Nothing is sampled jointly."""
        return {}

    def sample_relative(self, study: Any, trial: FrozenTrial, search_space: dict[str, Any]) -> dict[str, Any]:
        """Nothing is sampled jointly."""
        return {}

    def sample_independent(self, study: Any, trial: FrozenTrial, name: str, distribution: BaseDistribution) -> float:
        """The slot's value of option `name`."""
        return self._values[name]


def of_slot(space: Space, slot: int) -> dict[str, float]:
    """The sequence's value of every range, by the number of the slot alone."""
    return {r.path: r.at(u) for r, u in zip(space.ranges, point(slot, len(space.ranges)), strict=True)}


def sampler(kind: str, space: Space, slot: int, seed: int) -> BaseSampler:
    """The sampler for one trial. TPE draws from (seed, slot), so that one worker that is killed repeats itself."""
    if kind == "sobol" or slot < STARTUP:
        return SequenceSampler(space, slot)
    return TPESampler(n_startup_trials=1, constant_liar=True, seed=derive(seed, "tuning", slot) % 2**32)


def suggest(trial: optuna.Trial, ranges: tuple[Range, ...]) -> dict[str, float]:
    """The trial's value of every range; those it has already are kept."""
    return {r.path: trial.suggest_float(r.path, r.low, r.high, log=r.log) for r in ranges}
