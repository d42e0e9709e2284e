"""P1.a, P1.b and P2.b: at which rate the error falls with the samples, in expectation and in its upper quantiles."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from clipbench.analysis.claims.source import Missing, Source
from clipbench.analysis.claims.statement import Statement
from clipbench.analysis.load import Experiment
from clipbench.analysis.study_rows import jackknife, log_slope, over_groups, pick, study_table

MEDIAN, HIGH = "0.5", "0.999"


class Cell(NamedTuple):
    """One problem and one p: where it is, p, the statement on its slope, and whether the slope has settled."""

    place: str
    power: float
    statement: Statement
    settled: bool


def rate_in_expectation(
    source: Source, experiment: str, method: str, slack: float, settled: float, enough: int, among: float,
    slope_from: int, slope_steps: int, beside: list[str],
) -> list[Statement]:  # fmt: skip
    """The slope of log mean error against log K is at most −(p − 1)/(3p − 2) + `slack` in every settled cell.

    The slope is over K ≥ `slope_from` with at least `slope_steps` steps; a cell is settled where the slopes of both
    halves agree within `settled`. At least `enough` cells must be, every one with p = `among` too; else Missing. The
    other methods' slopes stand `beside`.
    """
    runs = source.experiment(experiment)
    cells = [_cell(runs, run, method, slack, settled, slope_from, slope_steps) for run in _finished(runs)]
    if not cells:
        raise Missing(f"{experiment} has no finished runs")
    required = [cell.statement._replace(required=cell.settled) for cell in cells]
    others = [
        _cell(runs, run, name, slack, settled, slope_from, slope_steps).statement._replace(required=False)
        for name in beside
        for run in _finished(runs)
    ]
    few = [c.place for c in cells if c.power == among and not c.settled]
    count = sum(cell.settled for cell in cells)
    if count < enough or few:
        reason = f"{count} of {len(cells)} cells have settled slopes, {enough} are asked for"
        raise Missing(f"{reason}; not settled: {', '.join(few)}" if few else reason, [*required, *others])
    return [*required, *others]


def _finished(runs: Experiment) -> list[Any]:
    table = runs.runs[runs.runs["status"] == "ok"]
    return [run for _, run in table.iterrows()]


def _cell(
    runs: Experiment, run: Any, method: str, slack: float, settled: float, slope_from: int, slope_steps: int
) -> Cell:
    study = run["config"]["study"]
    power = float(study["power"])
    table = study_table(runs, run["run_id"])
    whole = pick(table, "gradient_norm", method=method, quantile="mean")
    counts = pick(table, "steps", method=method)
    whole = whole[(whole.index >= slope_from) & (counts.reindex(whole.index) >= slope_steps)]
    parts = _groups(table, method).reindex(whole.index)
    total = parts.sum(axis=1)
    without = pd.DataFrame({name: (total - parts[name]) / (parts.shape[1] - 1) for name in parts})
    bound = -(power - 1) / (3 * power - 2) + slack
    noise = f", {study['directions']} noise" if "directions" in study else ""  # matrices have it fixed or random
    place = f"{study.get('problem') or study.get('noise')}{noise}, p = {power:g}"
    text = f"slope of {method} ≤ {bound:.3f}: {place}"
    statement = Statement(text, over_groups(whole, without, log_slope), "below", bound=bound, seeds=False)
    half = len(whole) // 2
    halves = [log_slope(whole.iloc[: len(whole) - half]), log_slope(whole.iloc[half:])]
    return Cell(place, power, statement, abs(halves[0] - halves[1]) <= settled)


def _groups(table: pd.DataFrame, method: str) -> pd.DataFrame:
    """Mean error of each group of seeds, one column a group, one row a K."""
    rows = table[(table["statistic"] == "gradient_norm") & (table["method"] == method) & table["part"].notna()]
    return rows.pivot_table(index="step", columns="part", values="value")


def rate_with_high_probability(
    source: Source, experiment: str, method: str, against: str, problem: str, powers: list[float], share: float
) -> list[Statement]:
    """q_{1−δ} grows no faster than log(1/δ), and q_0.999/q_0.5 is below `share` of that of `against`, for `powers`.

    The exponent is log(q_0.999/q_0.5)/log(log 1000/log 2): from the median to δ = 1e-3. `problem` decides, others are
    shown; so are other values of p.
    """
    runs = source.experiment(experiment)
    statements: list[Statement] = []
    for run in _finished(runs):
        study = run["config"]["study"]
        table = study_table(runs, run["run_id"])
        total = int(table["step"].max())
        place = f"{study['problem']}, p = {float(study['power']):g}"
        required = study["problem"] == problem and float(study["power"]) in powers
        own, other = (_spread(table, name, total) for name in (method, against))
        if own is None or other is None:
            continue
        scale = math.log(math.log(1000) / math.log(2))
        exponent = jackknife(own[0] / scale, [value / scale for value in own[1]])
        text = f"exponent of the quantile in log(1/δ) ≤ 1: {place}"
        statements.append(Statement(text, exponent, "below", bound=1.0, required=required, seeds=False))
        gap = jackknife(own[0] - other[0], [a - b for a, b in zip(own[1], other[1], strict=True)])
        text = f"q_0.999/q_0.5 of {method} below {share:g} of {against}'s: {place}"
        bound = math.log(share)
        statements.append(Statement(text, gap, "below", bound=bound, unit="log", required=required, seeds=False))
    if not statements:
        raise Missing(f"{experiment} has no runs with enough seeds for the 0.999-quantile")
    return statements


def _spread(table: pd.DataFrame, method: str, total: int) -> tuple[float, list[float]] | None:
    """log(q_0.999/q_0.5) at K = `total`, and the same without each group of seeds; None without such quantiles."""
    low, high = (pick(table, "gradient_norm", method=method, quantile=level) for level in (MEDIAN, HIGH))
    if total not in low.index or total not in high.index:
        return None
    left = table[(table["statistic"] == "gradient_norm_without") & (table["method"] == method)]
    parts = left[left["step"] == total].pivot_table(index="part", columns="quantile", values="value")
    return float(np.log(high[total] / low[total])), np.log(parts[HIGH] / parts[MEDIAN]).tolist()
