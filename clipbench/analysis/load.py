"""results/data → data frames. Everything drawn, tabulated or claimed starts here and reads nothing else."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import pandas as pd

from clipbench.runs.archive import (
    MAPPINGS,
    METRIC_COLUMNS,
    data_file,
    holds_runs,
    read_mapping,
    read_table,
    selection_file,
)
from clipbench.runs.parquet import read_arrow
from clipbench.timing.match import matching

CALIBRATION_COLUMNS = [
    "experiment",
    "method",
    "device",
    "threads",
    "step_seconds",
    "ratio",
    "ratio_low",
    "ratio_high",
]


class Experiment(NamedTuple):
    """The runs of one experiment.

    `runs` has one row per run: the entries of run.json (`final`, `best`, `seconds`, `device`, `versions`,
    `data` and `config` as mappings) and `lr`, the learning rate of the configuration. `metrics` is the long
    table: `run_id`, `step`, `epoch`, `samples`, `train_seconds`, `split`, `metric`, `value`. `tuning` is what the
    latest tuning selected, by method (<experiment>__tuning.json).
    """

    name: str
    runs: pd.DataFrame
    metrics: pd.DataFrame
    tuning: Mapping[str, Any] = MappingProxyType({})

    @property
    def baselines(self) -> frozenset[str]:
        """The methods of which tuning found that they do best where they clip nothing."""
        return frozenset(method for method, found in self.tuning.items() if found.get("is_baseline"))

    def selected(self, method: str) -> frozenset[str]:
        """The ids of the method's final runs at the settings that the latest tuning selected, empty where unknown."""
        return frozenset(self.tuning.get(method, {}).get("final_runs", ()))

    def curve(self, run_id: str, split: str, metric: str) -> pd.DataFrame:
        """`step`, `train_seconds` and `value` of one metric of one run, by step."""
        rows = self.metrics
        rows = rows[(rows["run_id"] == run_id) & (rows["split"] == split) & (rows["metric"] == metric)]
        return rows[["step", "train_seconds", "value"]].sort_values("step", kind="stable").reset_index(drop=True)


def experiments(results: Path) -> list[str]:
    """The names of the experiments collected under `results`, sorted. Other tables in results/data are passed
    over."""
    names = set()
    for path in sorted((results / "data").glob("*.parquet")):
        if holds_runs(path):
            names |= set(read_arrow(path, ["experiment"]).column(0).unique().to_pylist())
    return sorted(names)


def load(results: Path, experiment: str) -> Experiment:
    """The runs of `experiment`. Raises ValueError where it has not been collected, naming those that have."""
    path = data_file(results, experiment)
    if not path.exists():
        known = ", ".join(experiments(results)) or "none"
        raise ValueError(f"experiment must be one collected under {results / 'data'} ({known}), got {experiment}")
    table = read_table(path)
    metrics = table[["run_id", *METRIC_COLUMNS]].dropna(subset=["metric"]).reset_index(drop=True)
    metrics = metrics.astype({"step": int})
    runs = table.drop(columns=METRIC_COLUMNS).drop_duplicates("run_id").reset_index(drop=True)
    for column in MAPPINGS:
        texts = runs[column] if column in runs else pd.Series([None] * len(runs))
        runs[column] = pd.Series([json.loads(t) if isinstance(t, str) else {} for t in texts], dtype=object)
    runs["lr"] = [_number(config.get("optimizer"), "lr") for config in runs["config"]]
    return Experiment(experiment, runs, metrics, selection(results, experiment))


def selection(results: Path, experiment: str) -> dict[str, Any]:
    """What the latest tuning selected, by method; empty where there was none."""
    path = selection_file(results, experiment)
    return read_mapping(path) if path.exists() else {}


def _number(mapping: Any, key: str) -> float:
    value = mapping.get(key) if isinstance(mapping, Mapping) else None
    return float(value) if isinstance(value, int | float) else float("nan")


def final(runs: pd.DataFrame, name: str) -> pd.Series:
    """The final metric `name` ("test_accuracy", "validation_loss", …) of each run, NaN where it has none; as
    `runs`."""
    return pd.Series([_number(values, name) for values in runs["final"]], index=runs.index, dtype=float)


def load_calibration(results: Path, experiment: str, runs: pd.DataFrame) -> pd.DataFrame:
    """The calibrated step times that hold for `runs` of `experiment`, one row per method (index), of ONE machine.

    A row holds where device, threads, precision, samples per step, code and tuning are those of the method's runs (see
    clipbench.timing.match); empty where none does. `attrs["note"]` says what was left out and why.
    """
    path = results / "data" / "calibration.parquet"
    nothing = pd.DataFrame(columns=CALIBRATION_COLUMNS).set_index("method")
    if not path.exists():
        return nothing
    table = read_table(path)
    missing = [c for c in CALIBRATION_COLUMNS if c not in table]
    if missing:
        raise ValueError(f"{path} must have the column {missing[0]}, it has {', '.join(table.columns)}")
    table = table[table["experiment"] == experiment]
    if table.empty:
        return nothing
    rows, note = matching(table, runs)
    result: pd.DataFrame = rows.drop_duplicates("method", keep="last").set_index("method")
    result.attrs["note"] = note
    return result
