"""How much a method clips: the share of samples, micro-batches, or steps and layers, averaged over training."""

from __future__ import annotations

import math

import pandas as pd

from clipbench.analysis.load import Experiment

SHARES = ("sample_clipped_fraction", "micro_batch_clipped_fraction", "clipped_fraction")
"""What a step records: the estimator's share of samples or micro-batches, and the clipper's of its groups (the whole
gradient, or the layers)."""


def clipped_shares(experiment: Experiment, runs: pd.DataFrame) -> dict[str, float]:
    """run_id → mean share clipped over the run's training; of a method that clips in two places, the larger.

    Runs that recorded none are left out.
    """
    rows = _train_rows(experiment, runs)
    rows = rows[rows["metric"].isin(SHARES)]
    means = rows.groupby(["run_id", "metric"])["value"].mean().groupby("run_id").max()
    return {str(run): float(value) for run, value in means.items() if math.isfinite(value)}


def dropped_share(experiment: Experiment, runs: pd.DataFrame) -> float:
    """Share of all samples that were left out because their gradient was not finite; NaN where it was not recorded."""
    rows = _train_rows(experiment, runs)
    dropped = rows[rows["metric"] == "dropped"]["value"].mean()
    samples = (
        pd.to_numeric(runs["samples_per_step"], errors="coerce").mean() if "samples_per_step" in runs else math.nan
    )
    return float(dropped / samples)


def _train_rows(experiment: Experiment, runs: pd.DataFrame) -> pd.DataFrame:
    rows = experiment.metrics
    return rows[(rows["split"] == "train") & rows["run_id"].isin(set(runs["run_id"]))]
