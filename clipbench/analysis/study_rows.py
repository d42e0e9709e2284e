"""The rows of studies: metric names such as `error/estimator=ps_clip/quantile=0.999` taken apart into columns."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import stats as scipy_stats

from clipbench.analysis.load import Experiment
from clipbench.analysis.stats import Interval

Floats = npt.NDArray[np.float64]


def study_table(experiment: Experiment, run_id: str) -> pd.DataFrame:
    """The study rows of one run: `statistic`, `step`, `value` and one column of text for every label."""
    rows = experiment.metrics
    rows = rows[(rows["run_id"] == run_id) & (rows["split"] == "study")]
    parts = [name.split("/") for name in rows["metric"]]
    labels = [dict(word.split("=", 1) for word in words) for _, *words in parts]
    table = pd.DataFrame(labels, index=rows.index)
    return table.assign(statistic=[part[0] for part in parts], step=rows["step"], value=rows["value"])


def pick(table: pd.DataFrame, statistic: str, **labels: Any) -> pd.Series:
    """The values of a statistic with these labels, by step (index, ascending); empty where there are none."""
    chosen = table[table["statistic"] == statistic]
    for name, value in labels.items():
        if name not in chosen:
            return pd.Series(dtype=float)
        chosen = chosen[chosen[name] == str(value)]
    return chosen.set_index("step")["value"].sort_index()


def jackknife(whole: float, left_out: Iterable[float], level: float = 0.95) -> Interval:
    """A statistic with its delete-group jackknife interval: t with G − 1 degrees on √((G − 1)/G Σ (t_i − t̄)²).

    `left_out` are the statistics without group 1, 2, … G. n is G. Efron and Tibshirani (1993), chapter 11.
    """
    parts = np.asarray(list(left_out), dtype=np.float64)
    groups = len(parts)
    if groups < 2 or not np.isfinite(parts).all():
        return Interval(whole, float("nan"), float("nan"), groups)
    error = float(np.sqrt((groups - 1) / groups * ((parts - parts.mean()) ** 2).sum()))
    half = float(scipy_stats.t.ppf((1 + level) / 2, groups - 1)) * error
    return Interval(whole, whole - half, whole + half, groups)


def interval_of_parts(parts: pd.DataFrame, level: float = 0.95) -> pd.DataFrame:
    """`low` and `high` of the mean over the columns of each row: Student's t over groups of equal size."""
    groups = parts.shape[1]
    if groups < 2:
        return pd.DataFrame(columns=["low", "high"], dtype=float)
    half = float(scipy_stats.t.ppf((1 + level) / 2, groups - 1)) * parts.std(axis=1, ddof=1) / np.sqrt(groups)
    mean = parts.mean(axis=1)
    return pd.DataFrame({"low": mean - half, "high": mean + half})


def log_slope(values: pd.Series) -> float:
    """The least-squares slope of log value against log step, NaN below two points."""
    if len(values) < 2:
        return float("nan")
    return float(np.polyfit(np.log(values.index.to_numpy(float)), np.log(values.to_numpy(float)), 1)[0])


def over_groups(whole: pd.Series, parts: pd.DataFrame, statistic: Callable[[pd.Series], float]) -> Interval:
    """`statistic` of a curve with the jackknife over `parts`, one column a group left out, one row a step."""
    return jackknife(statistic(whole), [statistic(parts[column].dropna()) for column in parts])
