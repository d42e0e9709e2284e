"""The statistics of the claims that rest on training runs: P1.d, P1.e, P2.c and P2.f.

Each function takes a `Source` and the options of its entry in conf/claims.yaml and returns the statements that decide.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import pandas as pd

from clipbench.analysis.claims.effects import Scale, bonferroni, paired_effect
from clipbench.analysis.claims.readings import (
    Reading,
    by_seed,
    chosen_runs,
    final_value,
    is_idle,
    share_clipped,
    trivial,
    value_at,
)
from clipbench.analysis.claims.source import Missing, Source
from clipbench.analysis.claims.statement import Side, Statement
from clipbench.analysis.groups import BASELINE
from clipbench.analysis.load import Experiment, final, load_calibration
from clipbench.analysis.stats import Interval


class Arm(NamedTuple):
    """Runs on one side of a comparison: a method, dotted options that narrow it down, and where it was run."""

    method: str
    where: dict[str, Any]
    label: str
    experiment: str | None = None  # None: that of the claim

    @classmethod
    def of(cls, given: str | Mapping[str, Any]) -> Arm:
        """From conf/claims.yaml: a method's name, or {method, where, label, experiment}."""
        if isinstance(given, str):
            return cls(given, {}, given)
        method, where = given["method"], dict(given.get("where") or {})
        return cls(method, where, given.get("label") or method, given.get("experiment"))


def better_at_equal_seconds(
    source: Source, experiment: str, method: str, against: Sequence[str], metric: str, margin: float
) -> list[Statement]:
    """P1.d: `metric` of `method` minus that of each of `against`, each read at its last evaluation before T seconds.

    T = planned steps × the cheapest compared method's calibrated step time. The same at equal steps stands beside it.
    """
    runs = source.experiment(experiment)
    arms = [Arm.of(name) for name in (method, *against)]
    last = _last_steps(source, runs, [arm.method for arm in arms])
    at_equal_seconds = value_at(runs, metric, last)
    statements = []
    for read, words, required in (
        (at_equal_seconds, "at equal seconds", True),
        (final_value(metric), "at equal steps", False),
    ):
        values = {arm.label: by_seed(_runs(runs, arm), read, metric) for arm in arms}
        for name in against:
            statements.append(
                Statement(
                    f"{_words(metric)}, {method} − {name} > 0 {words}",
                    paired_effect(values[method].values, values[name].values),
                    "above",
                    margin=margin,
                    unit="accuracy",
                    required=required,
                    identical=_idle(runs, arms[0]),
                )
            )
    return statements


def _last_steps(source: Source, runs: Experiment, methods: Sequence[str]) -> dict[str, float]:
    """The step that each method has reached when the cheapest one ends."""
    table = load_calibration(source.results, runs.name, runs.runs)
    absent = sorted(set(methods) - set(table.index))
    if absent:
        raise Missing(f"{runs.name} has no calibrated step time of {', '.join(absent)}")
    seconds = {method: float(table.loc[method, "step_seconds"]) for method in methods}
    planned = float(runs.runs["steps"].max())
    total = planned * min(seconds.values())
    return {method: math.floor(total / seconds[method] + 1e-9) for method in methods}


def _runs(experiment: Experiment, arm: Arm, role: str | None = None) -> pd.DataFrame:
    """The arm's runs; those of the baseline where tuning found that the method is its baseline. Raises Missing."""
    found = chosen_runs(experiment, arm.method, arm.where, role)
    if found.empty and role is None and arm.method in experiment.baselines:
        found = chosen_runs(experiment, BASELINE, arm.where, role)
    if found.empty:
        raise Missing(f"{experiment.name} has no runs of {arm.label}")
    return found


def _read(experiment: Experiment, arm: Arm, metric: str) -> Reading:
    return by_seed(_runs(experiment, arm), final_value(metric), metric)


def _idle(experiment: Experiment, arm: Arm) -> bool:
    """Whether the arm's runs clip so little that they are their baseline's, or tuning found that they should."""
    idle = is_idle(share_clipped(experiment, _runs(experiment, arm)))
    return arm.method in experiment.baselines or (arm.method != BASELINE and idle)


def _words(metric: str) -> str:
    return metric.replace("_", " ")


def clip_before_accumulating(
    source: Source, settings: Sequence[Mapping[str, Any]], before: str, after: str, metric: str, margin: float,
    ratio: float,
) -> list[Statement]:  # fmt: skip
    """P1.e: `metric` of clipping every mini-batch minus that of clipping once after accumulation, at every setting.

    `settings` name an experiment each (and may narrow it by `where`); the calibrated step time of `before` over that
    of `after` is to be at most `ratio`.
    """
    statements = []
    for setting in settings:
        runs = source.experiment(setting["experiment"])
        where, label = dict(setting.get("where") or {}), str(setting["label"])
        arms = [Arm(name, where, name) for name in (before, after)]
        first, second = (_read(runs, arm, metric) for arm in arms)
        statements.append(
            Statement(
                f"{_words(metric)}, {before} − {after} > 0 at {label}",
                paired_effect(first.values, second.values),
                "above",
                margin=margin,
                unit="accuracy",
                identical=_idle(runs, arms[0]),
            )
        )
        table = load_calibration(source.results, runs.name, runs.runs)
        if {before, after} - set(table.index):
            raise Missing(f"{runs.name} has no calibrated step time of {before} and {after}")
        statements.append(
            Statement(
                f"step time of {before} ≤ {ratio:g} × {after}'s at {label}",
                _time_ratio(table, before, after),
                "below",
                bound=ratio,
                unit="×",
                seeds=False,
            )
        )
    return statements


def _time_ratio(table: pd.DataFrame, method: str, base: str) -> Interval:
    """Ratio of two calibrated step times; its interval from those of both ratios to the calibration's baseline.

    The rounds are interleaved, so the two ratios rise and fall together, and their relative half-widths added as
    squares bound that of their quotient from above.
    """
    first, second = table.loc[method], table.loc[base]
    ratio = float(first["step_seconds"]) / float(second["step_seconds"])
    parts = [(float(row["ratio_high"]) - float(row["ratio_low"])) / 2 / float(row["ratio"]) for row in (first, second)]
    half = ratio * math.hypot(*parts)
    return Interval(ratio, ratio - half, ratio + half, int(min(first.get("n", 0), second.get("n", 0))))


def family_against(
    source: Source, experiment: str, family: Sequence[Any], against: Sequence[Any], metric: str,
    scale: Scale = "log", select_by: str = "validation_loss",
) -> list[Statement]:  # fmt: skip
    """P2.c: `metric` of the family's best member, chosen on tuning trials by `select_by`, below that of each rival.

    Beside the verdict stand the chosen one's `select_by`, and the members that were not chosen.
    """
    runs = source.experiment(experiment)
    arms = [Arm.of(member) for member in family]
    chosen = best_member(runs, arms, select_by)
    statements = []
    for arm, name in [(chosen, metric), (chosen, select_by), *((arm, metric) for arm in arms if arm != chosen)]:
        values, idle = _read(runs, arm, name).values, _idle(runs, arm)
        for rival in map(Arm.of, against):
            there = source.experiment(rival.experiment) if rival.experiment else runs
            effect = paired_effect(values, _read(there, rival, name).values, scale)
            other = f"({rival.label})" if "+" in rival.label else rival.label
            text = f"{_words(name)} ({scale}), {arm.label} − {other} < 0"
            required = (arm, name) == (chosen, metric)
            statements.append(Statement(text, effect, "below", required=required, unit=scale, identical=idle))
    return statements


def best_member(experiment: Experiment, family: Sequence[Arm], select_by: str) -> Arm:
    """The arm whose best tuning trial has the lowest `select_by`; the first where there was no tuning."""
    best: dict[int, float] = {}
    for index, arm in enumerate(family):
        trials = chosen_runs(experiment, arm.method, arm.where, role="tune")
        losses = final(trials[trials["status"] == "ok"], select_by).dropna()
        if len(losses):
            best[index] = float(losses.min())
    return family[min(best, key=lambda index: best[index])] if best else family[0]


def no_worse_and_somewhere_better(
    source: Source, comparisons: Sequence[Mapping[str, Any]], select_by: str = "validation_loss"
) -> list[Statement]:
    """P2.f: in every comparison the family's best member is no worse than its rival by the margin, and ANY is better.

    A comparison has `experiment`, `family`, `against`, `metric`, `scale`, `margin`, `higher` and a `label`.
    """
    level = bonferroni(len(comparisons))
    safe, better = [], []
    for item in comparisons:
        runs = source.experiment(item["experiment"])
        chosen = best_member(runs, [Arm.of(member) for member in item["family"]], select_by)
        rival = Arm.of(item["against"])
        metric, scale, margin = item["metric"], item.get("scale", "difference"), float(item["margin"])
        values, base = (_read(runs, arm, metric).values for arm in (chosen, rival))
        side: Side = "above" if item["higher"] else "below"
        bound = -margin if item["higher"] else margin
        name = f"{item['label']}: {_words(metric)}, {chosen.label} − {rival.label}"
        idle = _idle(runs, chosen)
        unit = "accuracy" if metric.endswith("accuracy") else scale
        safe.append(
            Statement(f"{name}, no worse by the margin", paired_effect(values, base, scale), side, bound, unit=unit)
        )
        effect, text = paired_effect(values, base, scale, level), f"{name}, better"
        better.append(Statement(text, effect, side, 0.0, margin, unit, group="better", identical=idle))
    return safe + better


def capped_losses(experiment: Experiment, arm: Arm, metric: str) -> dict[int, dict[int, float]]:
    """trial → seed → final `metric` of the arm's tuning trials, at most the trivial predictor's."""
    table: dict[int, dict[int, float]] = {}
    for _, run in _runs(experiment, arm, role="tune").iterrows():
        if run["status"] in ("ok", "diverged"):
            cap = trivial(run, metric)
            value = final_value(metric)(run) if run["status"] == "ok" else math.inf
            value = value if math.isfinite(value) else math.inf
            table.setdefault(int(run["trial"]), {})[int(run["seed"])] = min(value, cap)
    return table
