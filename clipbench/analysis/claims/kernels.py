"""P2.e: what a spectral clip adds to a training step by the randomised SVD, against what it adds by the full one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from clipbench.analysis.claims.effects import paired_effect
from clipbench.analysis.claims.readings import by_seed, chosen_runs, final_value
from clipbench.analysis.claims.source import Missing, Source
from clipbench.analysis.claims.statement import Statement
from clipbench.analysis.stats import Interval


def cheap_and_as_good(
    source: Source, bench: str, randomized: str, full: str, share: float, training: Mapping[str, Any]
) -> list[Statement]:
    """(r_randomised − 1) ≤ `share` · (r_full − 1) over SGD's step in every model; as good when trained.

    `training` has `experiment`, `metric`, `margin`, and the methods `randomized` and `full`.
    """
    steps = source.table(bench)
    steps = steps[steps["kind"] == "step"]
    statements = []
    for model in sorted(steps["problem"].unique()):
        rows = steps[steps["problem"] == model].set_index("method")
        absent = {randomized, full} - set(rows.index)
        if absent:
            raise Missing(f"{bench} has no step of {', '.join(sorted(absent))} for {model}")
        statements.append(
            Statement(
                f"extra time of {randomized} ≤ {share:g} × that of {full}, {model}",
                _share_of_extra(rows.loc[randomized], rows.loc[full]),
                "below",
                bound=share,
                unit="share",
                seeds=False,
            )
        )
    return [*statements, _as_good(source, **training)]


def _share_of_extra(cheap: pd.Series, dear: pd.Series) -> Interval:
    """(r − 1)/(r′ − 1) with the corners of both ratios' intervals as bounds: wider than either alone would give."""
    estimate = (cheap["estimate"] - 1) / (dear["estimate"] - 1)
    if not dear["low"] > 1:
        return Interval(float(estimate), float("-inf"), float("inf"), int(cheap["n"]))
    corners = [(c - 1) / (d - 1) for c in (cheap["low"], cheap["high"]) for d in (dear["low"], dear["high"])]
    return Interval(float(estimate), float(min(corners)), float(max(corners)), int(cheap["n"]))


def _as_good(source: Source, experiment: str, metric: str, margin: float, randomized: str, full: str) -> Statement:
    """The final metric of runs by the randomised form is no worse than by the full one, by the margin."""
    runs = source.experiment(experiment)
    values = []
    for method in (randomized, full):
        found = chosen_runs(runs, method)
        if found.empty:
            raise Missing(f"{experiment} has no runs of {method}")
        values.append(by_seed(found, final_value(metric), metric).values)
    effect = paired_effect(values[0], values[1])
    text = f"{metric.replace('_', ' ')}, {randomized} − {full}, no worse by the margin"
    return Statement(text, effect, "above", bound=-margin, unit="accuracy")
