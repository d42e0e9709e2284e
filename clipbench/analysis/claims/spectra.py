"""P2.a: do outliers in the data amplify a few leading singular values and leave the rest as it is?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from clipbench.analysis.claims.source import Missing, Source
from clipbench.analysis.claims.statement import Statement
from clipbench.analysis.stats import Interval
from clipbench.analysis.study_rows import jackknife, study_table

CONTROL = "control"
LAYER = ["step", "layer"]


class Layers(NamedTuple):
    """How many of a network's layers, over its checkpoints, move as claimed; `low` and `high` by the 95 % bounds."""

    likely: int
    low: int
    high: int
    total: int


def outliers_move_few_values(
    source: Source, experiments: Sequence[str], outliers: int, factor: float, bulk: float
) -> list[Statement]:
    """For each network and each kind of outlier: in most layers D > log `factor` and the bulk within `bulk`.

    D = log(s₁′/s₁) − bulk, minus the control's, of `outliers` samples of a batch; the bulk's change is that of the
    median over the middle half. A layer at a checkpoint counts as claimed where D's 95 % interval lies above log
    `factor` and the bulk's within ± log(1 + `bulk`), as not claimed where either lies outside, else as open. The
    statement is shown where more than half of all layers are as claimed, refuted where at least half are not.
    """
    statements = []
    for name in experiments:
        runs = source.experiment(name)
        for _, run in runs.runs[runs.runs["status"] == "ok"].iterrows():
            table = study_table(runs, run["run_id"])
            table = table[(table["statistic"].isin(["top", "bulk"])) & (table["count"] == str(outliers))]
            network = run["config"]["model"]["name"]
            for kind in sorted(set(table["kind"]) - {CONTROL}):
                layers = _layers(table, kind, math.log(factor), math.log1p(bulk))
                low, high = layers.low / layers.total, layers.high / layers.total
                share = Interval(layers.likely / layers.total, low, high, layers.total)
                text = f"share of {network}'s layers that outliers of the {kind} move as claimed > ½"
                statements.append(Statement(text, share, "above", bound=0.5, unit="share", seeds=False))
    if not statements:
        raise Missing(f"{', '.join(experiments)} have no finished runs")
    return statements


def _layers(table: pd.DataFrame, kind: str, least: float, most: float) -> Layers:
    parts = table.pivot_table(index=["step", "layer", "part"], columns=["kind", "statistic"], values="value")
    excess = (parts[kind]["top"] - parts[kind]["bulk"]) - (parts[CONTROL]["top"] - parts[CONTROL]["bulk"])
    moved = parts[kind]["bulk"] - parts[CONTROL]["bulk"]
    states = []
    for place, values in excess.groupby(level=LAYER):
        own, rest = _mean(values), _mean(moved.loc[place])
        claimed = own.low > least and -most < rest.low and rest.high < most
        not_claimed = own.high < least or rest.low > most or rest.high < -most
        states.append((claimed, not_claimed, own.estimate > least and abs(rest.estimate) < most))
    claimed_, refuted, likely = (sum(column) for column in zip(*states, strict=True))
    return Layers(likely, claimed_, len(states) - refuted, len(states))


def _mean(values: pd.Series) -> Interval:
    """The mean of the parts with its jackknife interval, which for a mean is Student's."""
    numbers = values.to_numpy(float)
    return jackknife(float(numbers.mean()), [float(np.delete(numbers, i).mean()) for i in range(len(numbers))])
