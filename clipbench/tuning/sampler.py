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
    """Values by the trial's index: no history, no state, the same for every worker."""

    def __init__(self, space: Space, index: int) -> None:
        self._values = values_at(space, index)

    def infer_relative_search_space(self, study: Any, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """Nothing is sampled jointly."""
        return {}

    def sample_relative(self, study: Any, trial: FrozenTrial, search_space: dict[str, Any]) -> dict[str, Any]:
        """Nothing is sampled jointly."""
        return {}

    def sample_independent(self, study: Any, trial: FrozenTrial, name: str, distribution: BaseDistribution) -> float:
        """The value of option `name`."""
        return self._values[name]


def values_at(space: Space, index: int) -> dict[str, float]:
    """The sequence's value of every range, by the index alone."""
    return {r.path: r.at(u) for r, u in zip(space.ranges, point(index, len(space.ranges)), strict=True)}


def sampler(kind: str, space: Space, index: int, seed: int) -> BaseSampler:
    """The sampler for one trial. TPE draws from (seed, index), so that one worker that is killed repeats itself."""
    if kind == "sobol" or index < STARTUP:
        return SequenceSampler(space, index)
    return TPESampler(n_startup_trials=1, constant_liar=True, seed=derive(seed, "tuning", index) % 2**32)


def suggest(trial: optuna.Trial, ranges: tuple[Range, ...]) -> dict[str, float]:
    """The trial's value of every range; those it has already are kept."""
    return {r.path: trial.suggest_float(r.path, r.low, r.high, log=r.log) for r in ranges}
