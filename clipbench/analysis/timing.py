"""The time of a training step: calibrated where every method of the panel was calibrated, else raw, and which is said."""

from __future__ import annotations

import math
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from clipbench.analysis.groups import BASELINE, Panel, Variant, baseline_of
from clipbench.analysis.load import load_calibration


class StepTimes(NamedTuple):
    """Seconds of a step and its ratio to the baseline's (estimate, low, high; NaN where unknown), by variant label."""

    source: str
    seconds: dict[str, float]
    ratios: dict[str, tuple[float, float, float]]
    notes: list[str]

    @property
    def calibrated(self) -> bool:
        return self.source == "calibrated"

    def ratio_text(self, variant: Variant) -> str:
        """ "1.23× [1.20, 1.26]", "1.23×" where there is no interval, "–" where there is no ratio."""
        value, low, high = self.ratios[variant.label]
        if not math.isfinite(value):
            return "–"
        return f"{value:.2f}×" + (f" [{low:.2f}, {high:.2f}]" if math.isfinite(low + high) else "")


def step_times(panel: Panel, results: Path, baseline: str = BASELINE) -> StepTimes:
    """Calibrated times if the calibration has every method of the panel, raw medians otherwise, never a mixture."""
    runs = pd.concat([v.runs for v in panel.variants]) if panel.variants else panel.experiment.runs.iloc[:0]
    table = load_calibration(results, panel.experiment.name, runs)
    missing = sorted({v.method for v in panel.variants} - set(table.index))
    optimizers = {v.optimizer for v in panel.variants}
    if table.empty or missing or len(optimizers) > 1:
        why = f" No calibration of {', '.join(missing)}." if missing and not table.empty else ""
        return _raw(panel, baseline, why)
    seconds = {v.label: float(table.loc[v.method, "step_seconds"]) for v in panel.variants}
    names = ["ratio", "ratio_low", "ratio_high"]
    ratios = {v.label: tuple(float(table.loc[v.method, name]) for name in names) for v in panel.variants}
    row = table.iloc[0]
    rounds = f", {int(table['n'].min())} interleaved rounds" if "n" in table else ""
    note = f"Step time: calibrated on {row['device']}, {int(row['threads'])} threads{rounds}; ratio to sgd [95 % interval]."
    return StepTimes("calibrated", seconds, ratios, [note])  # type: ignore[arg-type]


def _raw(panel: Panel, baseline: str, why: str) -> StepTimes:
    seconds = {v.label: raw_step_seconds(v) for v in panel.variants}
    ratios = {}
    for variant in panel.variants:
        base = baseline_of(variant, panel, baseline)
        below = seconds[base.label] if base is not None else math.nan
        ratios[variant.label] = (seconds[variant.label] / below if below > 0 else math.nan, math.nan, math.nan)
    devices = {(d.get("name"), d.get("threads")) for v in panel.variants for d in v.runs["device"]}
    mixed = f" The runs come from {len(devices)} different devices or thread counts." if len(devices) > 1 else ""
    note = (
        f"Step time: RAW medians of each run, a ratio to {baseline}'s, measured at different moments and so only a hint; "
        f"`python -m clipbench.calibrate` measures them side by side.{why}{mixed}"
    )
    return StepTimes("raw", seconds, ratios, [note])


def raw_step_seconds(variant: Variant) -> float:
    """The median over the variant's finished runs of `train_step_seconds`, itself a run's median; NaN without any."""
    runs = variant.runs[variant.runs["status"].isin(["ok", "diverged"])]
    if "train_step_seconds" not in runs:
        return math.nan
    return float(pd.to_numeric(runs["train_step_seconds"], errors="coerce").median())
