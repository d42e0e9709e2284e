"""What a claim reads of the runs of an experiment: one number per seed, at the end or at equal seconds.

A diverged or dead run (its loss at or above 0.95 of the best constant's) enters with the trivial predictor's value,
never as a missing one; failed and unfinished runs say nothing about a method and are counted apart.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import pandas as pd

from clipbench.analysis.bounded import metric_interval
from clipbench.analysis.claims.source import Missing
from clipbench.analysis.groups import compared_role
from clipbench.analysis.load import Experiment
from clipbench.analysis.shares import clipped_shares
from clipbench.analysis.stats import Interval

DEAD = 0.95
"""A run whose loss ends at or above this share of the best constant's has learned nothing."""
IDLE = 0.01
"""A tuned method that clips less than this share IS its baseline."""

Read = Callable[[pd.Series], float]


class Reading(NamedTuple):
    """One value per seed, and how the runs behind them ended: ok, and replaced by the trivial predictor's value."""

    values: dict[int, float]
    replaced: int
    unfinished: int
    run_ids: tuple[str, ...]


def chosen_runs(
    experiment: Experiment, method: str, where: Mapping[str, Any] | None = None, role: str | None = None
) -> pd.DataFrame:
    """The method's runs in the role that is compared (final where there is one, else single).

    Of final runs only those that the latest tuning selected, where it says so: an earlier one may have selected other
    settings, and its runs stay in the data. `where` narrows them by dotted options of their configuration
    ("optimizer.name": "adam").
    """
    role = role or compared_role(experiment.runs)[0]
    runs = experiment.runs
    runs = runs[(runs["role"] == role) & (runs["method"] == method)]
    if role == "final" and (selected := experiment.selected(method)):
        runs = runs[runs["run_id"].isin(selected)]
    keep = [all(_option(config, key) == value for key, value in (where or {}).items()) for config in runs["config"]]
    return runs[pd.Series(keep, index=runs.index, dtype=bool)]


def _option(config: Mapping[str, Any], path: str) -> Any:
    node: Any = config
    for part in path.split("."):
        node = node.get(part) if isinstance(node, Mapping) else None
    return node


def final_value(metric: str) -> Read:
    """Reads the final metric ("test_accuracy") of a run; NaN where it has none."""

    def read(run: pd.Series) -> float:
        return _number(run["final"].get(metric))

    return read


def value_at(experiment: Experiment, metric: str, last_step: Mapping[str, float]) -> Read:
    """Reads "split_metric" at a run's last evaluation no later than `last_step[method]`; NaN where there is none yet.

    Raises Missing for a finished run that has no such curve.
    """
    split, _, name = metric.partition("_")

    def read(run: pd.Series) -> float:
        curve = experiment.curve(run["run_id"], split, name)
        early = curve[curve["step"] <= last_step[run["method"]]]
        if run["status"] == "ok" and early.empty:
            raise Missing(f"{experiment.name} recorded no {split} {name} by step {last_step[run['method']]:g}")
        return float(early["value"].iloc[-1]) if len(early) else math.nan

    return read


def by_seed(runs: pd.DataFrame, read: Read, metric: str) -> Reading:
    """One value per seed of `runs` by `read`; a diverged, dead or non-finite one is the trivial predictor's.

    Raises Missing where a run has to be replaced and its record does not say what the trivial predictor gets, and
    ValueError where two runs share a seed: their settings differ, and one would be left out in silence.
    """
    values: dict[int, float] = {}
    replaced = unfinished = 0
    used = []
    for _, run in runs.iterrows():
        if run["status"] not in ("ok", "diverged"):
            unfinished += 1
            continue
        value = read(run)
        if run["status"] == "diverged" or not math.isfinite(value) or _dead(run):
            value, replaced = trivial(run, metric), replaced + 1
        seed = int(run["seed"])
        if seed in values:
            raise ValueError(f"seed must tell the runs of {run['method']} apart, got two runs with seed {seed}")
        values[seed] = value
        used.append(str(run["run_id"]))
    return Reading(values, replaced, unfinished, tuple(used))


def trivial(run: pd.Series, metric: str) -> float:
    """What the trivial predictor gets on `metric`: chance accuracy, the best constant's loss, as the record states."""
    name = metric.partition("_")[2]
    known = run["data"].get("trivial") or {}
    value = _number(known.get(metric, known.get(name)))
    if not math.isfinite(value):
        raise Missing(f"data.trivial must hold {name} where a run has diverged, got {known} in {run['run_id']}")
    return value


def _dead(run: pd.Series) -> bool:
    """Whether a run's final loss (validation's, else test's) is no better than 0.95 of the best constant's."""
    constant = _number((run["data"].get("trivial") or {}).get("loss"))
    losses = [_number(run["final"].get(f"{split}_loss")) for split in ("validation", "test")]
    known = [loss for loss in losses if math.isfinite(loss)]
    return bool(known) and math.isfinite(constant) and known[0] >= DEAD * constant


def mean_share_clipped(experiment: Experiment, runs: pd.DataFrame) -> Interval:
    """Mean over the runs that ended ok of the share that was clipped, with its interval."""
    shares = clipped_shares(experiment, runs[runs["status"] == "ok"])
    return metric_interval(list(shares.values()), "clipped_fraction")


def is_idle(share: Interval) -> bool:
    """Whether so little is clipped that the method is its baseline; unknown shares are not idle."""
    return share.n > 0 and share.estimate < IDLE


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.nan
