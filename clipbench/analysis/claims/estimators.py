"""P1.c: is the per-sample clipped mean a robust estimator of the gradient?"""

from __future__ import annotations

import math
from collections.abc import Sequence

import pandas as pd

from clipbench.analysis.claims.source import Missing, Source
from clipbench.analysis.claims.statement import Statement
from clipbench.analysis.study_rows import jackknife, log_slope, over_groups, pick, study_table

SKEWED = ("pareto", "alpha_stable")
HIGH = "0.999"


def robust_estimator(
    source: Source, experiment: str, method: str, against: Sequence[str], slack: float, slope_from: int, size: int
) -> list[Statement]:
    """In every cell (noise, tail index, ‖μ‖, dimension): the slope in n ≥ `slope_from` of the method's median and
    0.999-quantile is at most −(p − 1)/p + `slack`; in every skewed one its 0.999-quantile at n = `size` is below those
    of `against` (log ratio). A quantile that too few repetitions carry has no statement.
    """
    runs = source.experiment(experiment)
    statements: list[Statement] = []
    for _, run in runs.runs[runs.runs["status"] == "ok"].iterrows():
        study = run["config"]["study"]
        table = study_table(runs, run["run_id"])
        place = f"{study['noise']} {study['index']:g}, ‖μ‖ = {study['mean_norm']:g}, d = {study['dimension']}"
        power = float(study["index"]) - float(study["margin"])
        bound = -(power - 1) / power + slack
        for level in ("0.5", HIGH):
            whole, parts = _curve(table, method, level)
            if whole.empty:
                continue
            effect = over_groups(whole, parts, lambda curve: log_slope(curve[curve.index >= slope_from]))
            text = f"slope of the {level}-quantile ≤ {bound:.3f}: {place}"
            statements.append(Statement(text, effect, "below", bound=bound, seeds=False))
        if study["noise"] in SKEWED:
            statements += _below(table, method, against, size, place)
    if not statements:
        raise Missing(f"{experiment} has no finished runs")
    return statements


def _curve(table: pd.DataFrame, estimator: str, level: str) -> tuple[pd.Series, pd.DataFrame]:
    """The quantile's curve over n, and the same without each of the groups, one column a group."""
    whole = pick(table, "error", estimator=estimator, quantile=level)
    left = table[(table["statistic"] == "error_without")]
    left = left[(left["estimator"] == estimator) & (left["quantile"] == level)] if len(left) else left
    return whole, left.pivot_table(index="step", columns="part", values="value") if len(left) else pd.DataFrame()


def _below(table: pd.DataFrame, method: str, against: Sequence[str], size: int, place: str) -> list[Statement]:
    """The log ratio of the 0.999-quantiles at n = `size`, of the method over each other estimator."""
    own, own_parts = _curve(table, method, HIGH)
    statements = []
    for name in against:
        other, other_parts = _curve(table, name, HIGH)
        if size not in own.index or size not in other.index:
            continue
        ratios = [math.log(own_parts.loc[size, part] / other_parts.loc[size, part]) for part in own_parts]
        effect = jackknife(math.log(own[size] / other[size]), ratios)
        text = f"0.999-quantile at n = {size}, {method}/{name}: {place}"
        statements.append(Statement(text, effect, "below", unit="log", seeds=False))
    return statements
