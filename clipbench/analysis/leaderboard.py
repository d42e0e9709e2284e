"""The leaderboard: every method's final runs on all tasks of conf/leaderboard.yaml, by one number a run.

That number is the test error over tuned SGD's (interquartile mean) on the same task, where the error is the test loss,
or one minus the test accuracy; a run that diverged or learned nothing has the trivial predictor's error. SGD is at 1,
less is better. Aggregates over tasks are those of Agarwal et al. (2021), arXiv:2108.13264; intervals resample the
seeds within every task.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import yaml
from scipy import stats as scipy_stats

from clipbench.analysis import aggregate
from clipbench.analysis.claims.judged import claims_file
from clipbench.analysis.claims.readings import by_seed, chosen_runs, final_value
from clipbench.analysis.groups import BASELINE, panels
from clipbench.analysis.load import Experiment, final, load, load_calibration
from clipbench.analysis.sensitivity import TOLERANCE, sensitivity
from clipbench.analysis.shares import clipped_shares
from clipbench.analysis.standing import standing
from clipbench.analysis.stats import Interval
from clipbench.analysis.targets import find_target, to_target
from clipbench.analysis.timing import step_times
from clipbench.errors import ConfigError
from clipbench.runs.archive import data_file


class Task(NamedTuple):
    """One entry of conf/leaderboard.yaml: its experiment's name without the size, its methods ("all", or those of the
    experiment's sweep where None), and how many runs train as one program."""

    name: str
    methods: str | None
    together: int


class Score(NamedTuple):
    """A method on one task: error over SGD's by seed, and beside it the shares (of runs that diverged, of others that
    learned nothing, of steps, samples or layers, of trials near the best), steps to the target and time of a step over
    SGD's; NaN where unknown."""

    errors: dict[int, float]
    diverged: float
    dead: float
    clipped: float
    near_best: float
    steps: float
    seconds: float
    is_baseline: bool


class Ranked(NamedTuple):
    """A method over the tasks of a board: interquartile mean of the error ratios, P(better than SGD), the p value of
    the paired ratios by Holm's correction, and the means of what stands beside it."""

    method: str
    error: Interval
    better: Interval
    p: float
    ratios: list[np.ndarray]
    diverged: float
    dead: float
    clipped: float
    near_best: float
    steps: float
    seconds: float
    same_as_baseline: int


class Board(NamedTuple):
    """Methods that were run on all of these tasks, best first; `left_out` says why others are not among them."""

    tasks: list[str]
    places: list[Ranked]
    left_out: list[str]


def listed(path: Path | None = None) -> list[Task]:
    """The tasks of conf/leaderboard.yaml (`path`: another file)."""
    text = (path or claims_file().with_name("leaderboard.yaml")).read_text(encoding="utf-8")
    return [Task(name, entry["methods"], int(entry["together"])) for name, entry in yaml.safe_load(text).items()]


def chosen(tasks: Sequence[Task], names: Sequence[str]) -> list[Task]:
    """The tasks of these names, all where there are none. Raises ConfigError for a name that is not there."""
    known = [task.name for task in tasks]
    for name in names:
        if name not in known:
            raise ConfigError(f"tasks must be among {', '.join(known)}, got {name}")
    return [task for task in tasks if not names or task.name in names]


def finals(experiment: Experiment) -> pd.DataFrame:
    """The runs that the board compares, at tuned settings: what a calibration of these settings has to match."""
    return experiment.runs[experiment.runs["role"] == "final"]


def scores(results: Path, experiment: Experiment) -> dict[str, Score]:
    """Every method's score on one task, SGD's among them; empty where tuned SGD has no finished final run.

    A method that does best where it clips nothing IS the baseline: its runs are SGD's.
    """
    experiment, _ = standing(experiment)
    metric, found = _metric(experiment), panels(experiment)
    if metric is None or not found:
        return {}
    panel = found[0]  # the only one: what stands differs in the method alone
    methods = sorted(set(experiment.runs["method"]) | experiment.baselines)
    base = by_seed(chosen_runs(experiment, BASELINE, role="final"), final_value(metric), metric)
    if not base.values:
        return {}
    scale = float(scipy_stats.trim_mean([_error(value, metric) for value in base.values.values()], 0.25))
    trials = sensitivity(experiment)
    near = {} if trials is None else {one.method: _near_best(one.loss) for one in trials.methods}
    goal, times = find_target(panel), step_times(panel, results)
    calibrated = load_calibration(results, experiment.name, finals(experiment))["ratio"].to_dict()
    steps = {}
    if goal is not None:
        reached = {variant.method: to_target(variant, panel, goal, times, "step") for variant in panel.variants}
        steps = {method: time.restricted_mean for method, time in reached.items() if time is not None}
    result = {}
    for method in methods:
        idle = method in experiment.baselines
        own = chosen_runs(experiment, BASELINE if idle else method, role="final")
        reading = by_seed(own, final_value(metric), metric)
        if not reading.values:
            continue
        errors = {seed: _error(value, metric) / scale for seed, value in reading.values.items()}
        shares = list(clipped_shares(experiment, own[own["status"] == "ok"]).values())
        diverged = int((own["status"] == "diverged").sum())
        result[method] = Score(
            errors,
            diverged / len(errors),
            (reading.replaced - diverged) / len(errors),
            0.0 if idle or not shares else float(np.mean(shares)),
            near.get(method, math.nan),
            steps.get(BASELINE if idle else method, math.nan) / steps.get(BASELINE, math.nan),
            1.0 if method == BASELINE else calibrated.get(method, math.nan),
            idle,
        )
    return result


def _metric(experiment: Experiment) -> str | None:
    names = ("test_accuracy", "test_loss")
    return next((name for name in names if final(experiment.runs, name).notna().any()), None)


def _error(value: float, metric: str) -> float:
    return 1.0 - value if metric.endswith("accuracy") else value


def _near_best(losses: np.ndarray) -> float:
    """Share of the trials whose validation loss is within 10 % of the method's best."""
    best = float(losses.min(initial=math.inf))
    return float((losses <= best + (TOLERANCE - 1) * abs(best)).mean()) if math.isfinite(best) else math.nan


def boards(results: Path, size: str = "cpu", path: Path | None = None) -> list[Board]:
    """All tasks with the methods they share; where some tasks have more methods, those tasks with theirs before it."""
    found: dict[str, dict[str, Score]] = {}
    left: dict[str, list[str]] = {}
    for task in listed(path):
        name = f"{task.name}/{size}"
        if data_file(results, name).exists():
            experiment = load(results, name)
            here = scores(results, experiment)
            if here:
                found[task.name] = here
                left[task.name] = [f"{m} ({why})" for m, why in standing(experiment).left_out.items()]
    if not found:
        return []
    most = max(len(here) for here in found.values())
    widest = [task for task, here in found.items() if len(here) == most]
    groups = [widest] if len(widest) == len(found) else [widest, list(found)]
    return [
        board({task: found[task] for task in tasks}, [why for task in tasks for why in left[task]]) for tasks in groups
    ]


def board(tasks: dict[str, dict[str, Score]], left_out: Sequence[str] = ()) -> Board:
    """The methods that all these tasks have, ordered by the interquartile mean of their errors."""
    methods = sorted(set.intersection(*(set(here) for here in tasks.values())))
    base = [here[BASELINE].errors for here in tasks.values()]
    places, raw = [], {}
    for method in methods:
        own = [here[method] for here in tasks.values()]
        groups = [np.array(list(score.errors.values())) for score in own]
        pairs = [(group, np.array(list(errors.values()))) for group, errors in zip(groups, base, strict=True)]
        raw[method] = aggregate.paired_p([(score.errors, errors) for score, errors in zip(own, base, strict=True)])
        places.append(
            Ranked(
                method,
                aggregate.pooled_interquartile_mean(groups),
                aggregate.improvement(pairs),
                math.nan,
                groups,
                _mean([score.diverged for score in own]),
                _mean([score.dead for score in own]),
                _mean([score.clipped for score in own]),
                _mean([score.near_best for score in own]),
                _geometric([score.steps for score in own]),
                _geometric([score.seconds for score in own]),
                sum(score.is_baseline for score in own),
            )
        )
    corrected = aggregate.holm({method: p for method, p in raw.items() if math.isfinite(p)})
    places = [place._replace(p=corrected.get(place.method, math.nan)) for place in places]
    ranked = sorted(places, key=lambda place: (place.error.estimate, place.method))
    return Board(list(tasks), ranked, list(left_out))


def _mean(values: Sequence[float]) -> float:
    """NaN where one of them is unknown."""
    return float(np.mean(values))


def _geometric(values: Sequence[float]) -> float:
    return float(np.exp(np.mean(np.log(values)))) if all(value > 0 for value in values) else math.nan
