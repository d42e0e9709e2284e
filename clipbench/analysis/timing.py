"""The time of a training step: calibrated where every method of the panel was calibrated, else raw, and which
is said."""

from __future__ import annotations

import math
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from clipbench.analysis.groups import BASELINE, Panel, Variant, baseline_of
from clipbench.analysis.load import load_calibration
from clipbench.wording import amount


class StepTimes(NamedTuple):
    """Seconds of a step and its ratio to the baseline's (estimate, low, high; NaN where unknown), by variant
    label."""

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
    """Calibrated times if the calibration has every method of the panel, raw medians otherwise, never a
    mixture."""
    runs = pd.concat([v.runs for v in panel.variants]) if panel.variants else panel.experiment.runs.iloc[:0]
    table = load_calibration(results, panel.experiment.name, runs)
    missing = sorted({v.method for v in panel.variants} - set(table.index))
    optimizers = {v.optimizer for v in panel.variants}
    if table.empty or missing or len(optimizers) > 1:
        why = f" No calibration of {', '.join(missing)}." if missing and not table.empty else ""
        why += f" {said}" if (said := table.attrs.get("note")) else ""
        return _raw(panel, baseline, why)
    seconds = {v.label: _cell(table, v.method, "step_seconds") for v in panel.variants}
    ratios = _ratios(panel, seconds, baseline)
    if baseline == BASELINE:  # what the calibration's own ratios, and their intervals, refer to
        names = ("ratio", "ratio_low", "ratio_high")
        for v in panel.variants:
            value, low, high = (_cell(table, v.method, name) for name in names)
            ratios[v.label] = (value, low, high)
    row = table.iloc[0]
    rounds = f", {int(table['n'].min())} interleaved rounds" if "n" in table else ""
    raw = _ratios(panel, {v.label: raw_step_seconds(v) for v in panel.variants}, baseline)
    beside = ", ".join(f"{label} {value[0]:.2f}×" for label, value in raw.items() if math.isfinite(value[0]))
    note = (
        f"Step time: calibrated on {row['device']}, {amount(int(row['threads']), 'thread')}{rounds}; "
        f"ratio to {baseline} [95 % interval]. Raw medians of the runs themselves: {beside or 'none'}."
    )
    said = table.attrs.get("note")
    return StepTimes("calibrated", seconds, ratios, [f"{note} {said}" if said else note])


def _cell(table: pd.DataFrame, method: str, column: str) -> float:
    return float(table[column].to_dict()[method])


def _ratios(panel: Panel, seconds: dict[str, float], baseline: str) -> dict[str, tuple[float, float, float]]:
    """Each variant's seconds over its baseline's, without an interval."""
    result = {}
    for variant in panel.variants:
        base = baseline_of(variant, panel, baseline)
        below = seconds[base.label] if base is not None else math.nan
        value = seconds[variant.label] / below if below > 0 else math.nan
        result[variant.label] = (value, math.nan, math.nan)
    return result


def _raw(panel: Panel, baseline: str, why: str) -> StepTimes:
    seconds = {v.label: raw_step_seconds(v) for v in panel.variants}
    devices = {(d.get("name"), d.get("threads")) for v in panel.variants for d in v.runs["device"]}
    mixed = f" The runs come from {len(devices)} devices or thread counts." if len(devices) > 1 else ""
    untimed = [label for label, value in seconds.items() if math.isnan(value)]
    if len(untimed) == len(seconds):
        said = (
            "Step time: not measured; runs that go together have no time of their own, only a share of their batch's."
        )
    else:
        said = f"Step time: RAW medians of the runs, as a ratio to {baseline}'s: measured at different moments, a hint."
        said += f" None of {', '.join(untimed)}, whose runs went together." if untimed else ""
    note = f"{said} `python -m clipbench.calibrate` measures step times side by side.{why}{mixed}"
    return StepTimes("raw", seconds, _ratios(panel, seconds, baseline), [note])


def raw_step_seconds(variant: Variant) -> float:
    """The median over the variant's finished runs of `train_step_seconds`, itself a run's median; NaN without any.

    Runs that went together have none: theirs is a share of a batch whose size and company differ from method to method.
    """
    runs = variant.runs[variant.runs["status"].isin(["ok", "diverged"])]
    if "together" in runs and runs["together"].notna().any():
        return math.nan
    if "train_step_seconds" not in runs:
        return math.nan
    return float(pd.to_numeric(runs["train_step_seconds"], errors="coerce").median())
