"""Which runs of a task count on the leaderboard: one selection a method, all tuned and run as SGD was.

Collected data keep every run that there ever was. A tuning that was repeated with other options, or by other code, may
have selected other settings, and its runs lie beside the earlier ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import pandas as pd

from clipbench.analysis.groups import BASELINE, columns_of, differing_keys
from clipbench.analysis.load import Experiment
from clipbench.runs.identity import counted, effective

MOST = 3  # options that are named where a method differs in more


class Standing(NamedTuple):
    """The experiment with the runs that count, and why methods were left out (method → reason)."""

    experiment: Experiment
    left_out: dict[str, str]


def standing(experiment: Experiment) -> Standing:
    """Of final runs those that the latest tuning selected; of all runs those with SGD's settings in everything but the
    method's own and the tuned options.

    A method without such final runs, or with another number of trials than SGD, is left out.
    """
    runs = _selected(experiment)
    settings = _settings(runs, experiment.tuning)
    finals = runs["role"] == "final"
    base = runs.index[finals & (runs["method"] == BASELINE)]
    if not len(base):
        return Standing(experiment._replace(runs=runs), {})
    wanted = settings[base[-1]]
    alike = pd.Series([settings[index] == wanted for index in runs.index], index=runs.index, dtype=bool)
    left_out = {}
    for method in sorted(set(runs.loc[finals, "method"]) - {BASELINE}):
        own = runs.index[finals & (runs["method"] == method)]
        if not alike[own].any():
            left_out[method] = _difference(settings[own[-1]], wanted)
    for method in sorted(set(experiment.tuning) - set(left_out)):
        trials, base_trials = (experiment.tuning.get(name, {}).get("trials") for name in (method, BASELINE))
        if base_trials is not None and trials is not None and trials != base_trials:
            left_out[method] = f"trials {trials}, SGD's {base_trials}"
    kept = runs[alike & ~runs["method"].isin(left_out)]
    tuning = {method: found for method, found in experiment.tuning.items() if method not in left_out}
    return Standing(experiment._replace(runs=kept, tuning=tuning), left_out)


def _selected(experiment: Experiment) -> pd.DataFrame:
    """All runs but the final ones of a selection that is no longer the method's."""
    runs = experiment.runs
    keep = [
        role != "final" or not (chosen := experiment.selected(str(method))) or run_id in chosen
        for role, method, run_id in zip(runs["role"], runs["method"], runs["run_id"], strict=True)
    ]
    return runs[pd.Series(keep, index=runs.index, dtype=bool)]


def _settings(runs: pd.DataFrame, tuning: Mapping[str, Any]) -> dict[Any, dict[str, Any]]:
    """By the runs' index: the options that a tuning of all methods holds fixed, and what data they met."""
    tuned = {path for found in tuning.values() for path in found.get("settings", {})} or {"optimizer.lr"}
    result = {}
    for index, run in zip(runs.index, runs.to_dict("records"), strict=True):
        kind = str(run["device"].get("type"))
        flat = columns_of(counted(effective(run["config"], kind), "variant"))
        fixed = {key: value for key, value in flat.items() if not key.startswith("method.") and key not in tuned}
        result[index] = fixed | {"device": kind, "data": run["data"].get("sum")}
    return result


def _difference(own: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    keys: Sequence[str] = differing_keys([own, wanted])
    shown = [f"{key} {own.get(key)}, SGD's {wanted.get(key)}" for key in keys[:MOST]]
    return "; ".join([*shown, *(["…"] if len(keys) > MOST else [])])
