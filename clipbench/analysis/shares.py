"""How much a method clips: the share of samples, micro-batches, or steps and layers, averaged over training."""

from __future__ import annotations

import math

import pandas as pd

from clipbench.analysis.load import Experiment, final

SHARES = ("sample_clipped_fraction", "micro_batch_clipped_fraction", "clipped_fraction")
"""What a step records: the estimator's share of samples or micro-batches, and the clipper's of its groups (the whole
gradient, or the layers)."""


def clipped_shares(experiment: Experiment, runs: pd.DataFrame) -> dict[str, float]:
    """run_id → mean share clipped over the run's training; of a method that clips in two places, the larger.

    It is the final metric train_share_clipped; for records without it, the mean of the rows. Runs with neither are left
    out.
    """
    known = {str(run): share for run, share in zip(runs["run_id"], final(runs, "train_share_clipped"), strict=True)}
    return _from_rows(experiment, runs) | {run: float(share) for run, share in known.items() if math.isfinite(share)}


def _from_rows(experiment: Experiment, runs: pd.DataFrame) -> dict[str, float]:
    rows = _train_rows(experiment, runs)
    rows = rows[rows["metric"].isin(SHARES)]
    means = _over_steps(rows).groupby("run_id").max()
    return {str(run): float(value) for run, value in means.items() if math.isfinite(value)}


def _over_steps(rows: pd.DataFrame) -> pd.Series:
    """Run and metric → mean over the run's steps: a row holds the mean since the row before it, so it counts by the
    steps between them, whatever the interval of logging. Of steps that are not a number nothing is known."""
    rows = rows.sort_values(["run_id", "metric", "step"], kind="stable")
    keys = [rows["run_id"], rows["metric"]]
    before = rows.groupby(["run_id", "metric"])["step"].shift(fill_value=0)
    steps = (rows["step"] - before).where(rows["value"].notna())
    sums: pd.Series = (rows["value"] * steps).groupby(keys).sum(min_count=1) / steps.groupby(keys).sum(min_count=1)
    return sums


def dropped_share(experiment: Experiment, runs: pd.DataFrame) -> float:
    """Share of all samples that were left out because their gradient was not finite; NaN where it was not recorded."""
    rows = _train_rows(experiment, runs)
    dropped = _over_steps(rows[rows["metric"] == "dropped"])
    steps = rows[rows["metric"] == "dropped"].groupby(["run_id", "metric"])["step"].max()
    samples = pd.to_numeric(runs.set_index("run_id")["samples_per_step"], errors="coerce")
    a_step = samples.reindex(dropped.index.get_level_values("run_id")).to_numpy()
    total = float((steps * a_step).sum())
    return float((dropped * steps).sum() / total) if total > 0 else math.nan


def _train_rows(experiment: Experiment, runs: pd.DataFrame) -> pd.DataFrame:
    rows = experiment.metrics
    return rows[(rows["split"] == "train") & rows["run_id"].isin(set(runs["run_id"]))]
