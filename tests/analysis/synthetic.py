"""Synthetic records on disk, in the form the runner leaves them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

COLUMNS = ["step", "epoch", "samples", "train_seconds", "split", "metric", "value"]
RATES = {"sgd": 1.0, "norm_clip": 1.15, "ps_clip": 1.6, "ps_clip_constant": 1.5}


def write_run(
    root: Path, method: str = "sgd", seed: int = 0, experiment: str = "toy/cpu", role: str = "single",
    status: str = "ok", lr: float = 0.1, steps: int = 400, every: int = 20, quality: float | None = None,
    trial: int | None = None, config: Mapping[str, Any] | None = None, accuracy: bool = True, **info: Any,
) -> Path:  # fmt: skip
    """Write one run's record below `root`; `info` replaces entries of run.json. Returns its folder."""
    settings: dict[str, Any] = {
        "seed": seed, "steps": steps, "batch_size": 128, "method": {"name": method},
        "optimizer": {"name": "sgd", "lr": lr}, "data": {"root": "/home/alice/d"},
        "paths": {"results": "/home/alice/results"},
    } | dict(config or {})  # fmt: skip
    identity = json.dumps([settings, role, trial, experiment], sort_keys=True)
    name = hashlib.sha256(identity.encode()).hexdigest()[:12]
    rng = np.random.default_rng([seed, sum(method.encode())])
    second = 0.01 * {"ps_clip": 1.8, "norm_clip": 1.05}.get(method, 1.0) * (1 + 0.1 * rng.random())
    quality = RATES.get(method, 1.2) if quality is None else quality
    stop = int(steps * 0.5) if status == "diverged" else steps
    rows = _rows(rng, seed, range(every, stop + 1, every), stop < steps, quality, second, accuracy)
    finals = {f"{r['split']}_{r['metric']}": r["value"] for r in rows} if status in ("ok", "diverged") else {}
    if accuracy and finals:
        finals["test_accuracy"] = finals["validation_accuracy"] - 0.01 + rng.normal(0, 0.002)
    record = _record(stop, second, finals) | {
        "run_id": name, "experiment": experiment, "method": method, "seed": seed, "role": role, "trial": trial,
        "status": status, "steps": steps,
    } | info  # fmt: skip
    folder = root / "runs" / experiment / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "run.json").write_text(json.dumps(record))
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    pd.DataFrame(rows, columns=COLUMNS).to_parquet(folder / "metrics.parquet")
    return folder


def _rows(
    rng: np.random.Generator, seed: int, steps: range, diverges: bool, quality: float, second: float, accuracy: bool
) -> list[dict[str, Any]]:
    """An exponentially falling loss with noise; a diverging one grows over its last fifth and ends in NaN."""
    luck = np.random.default_rng(seed).normal(0, 0.05)
    rows: list[dict[str, Any]] = []
    for step in steps:
        loss = 0.6 + 2.2 * np.exp(-quality * step / 150) + luck + rng.normal(0, 0.02)
        if diverges and step > 0.8 * steps[-1]:
            loss = loss * 3 if step < steps[-1] else float("nan")
        values = {("train", "loss"): loss * 0.95, ("validation", "loss"): loss + 0.05}
        if accuracy:
            values["validation", "accuracy"] = float(np.clip(0.3 * quality**0.3 - 0.1 * loss, 0, 1))
        common = {"step": step, "epoch": step / 100, "samples": step * 128, "train_seconds": step * second}
        rows += [common | {"split": s, "metric": m, "value": v} for (s, m), v in values.items()]
    return rows


def _record(stop: int, second: float, finals: Mapping[str, float]) -> dict[str, Any]:
    """The entries of run.json that `write_run` has no argument for."""
    return {
        "dataset": "toy", "model": "mlp", "optimizer": "sgd", "error": None, "precision": "fp32",
        "started": "2026-01-01T00:00:00+00:00", "finished": "2026-01-01T00:10:00+00:00",
        "versions": {"python": "3.11", "torch": "2.14"}, "commit": "c0ffee", "dirty": False,
        "fingerprint": "f" * 16, "device": {"type": "cpu", "name": "Test CPU", "threads": 2},
        "seconds": {"train": stop * second, "setup": 0.5, "evaluation": 1.0, "wall": stop * second + 2},
        "steps_done": stop, "samples_per_step": 128, "parameters": 1234, "train_step_seconds": second,
        "final": dict(finals), "best": dict(finals), "data": {"name": "toy", "verified": True},
        "host": "alices-laptop", "user": "alice", "paths": {"record": "/home/alice/results/runs"},
    }  # fmt: skip


def write_calibration(results: Path, experiment: str = "toy/cpu", device: str = "Test CPU", threads: int = 2) -> None:
    """A calibration of sgd, norm_clip and ps_clip."""
    ratios = {"sgd": 1.0, "norm_clip": 1.04, "ps_clip": 1.7}
    rows = [
        {"experiment": experiment, "method": m, "device": device, "threads": threads,
         "step_seconds": 0.01 * r,
         "ratio": r, "ratio_low": r - 0.02, "ratio_high": r + 0.02, "n": 30, "setup_seconds": 0.5,
         "peak_memory_bytes": 10**8, "precision": "fp32", "samples_per_step": 128, "fingerprint": "f" * 16,
         "tuned": False, "measured": "2026-01-02T00:00:00+00:00"}
        for m, r in ratios.items()
    ]  # fmt: skip
    (results / "data").mkdir(parents=True, exist_ok=True)
    pd.DataFrame(rows).to_parquet(results / "data" / "calibration.parquet")


def write_comparison(root: Path, seeds: int = 5, experiment: str = "toy/cpu") -> None:
    """sgd (one seed diverged), norm_clip and ps_clip."""
    for method in ("sgd", "norm_clip", "ps_clip"):
        for seed in range(seeds):
            status = "diverged" if method == "sgd" and seed == seeds - 1 else "ok"
            write_run(root, method, seed, experiment, status=status)


def write_tuning(root: Path, experiment: str = "toy/cpu", trials: int = 12) -> None:
    """Tuning trials over learning rates from 1e-3 to 1; the largest diverge."""
    for method, width in (("sgd", 1.0), ("norm_clip", 1.6), ("ps_clip", 2.2)):
        for trial in range(trials):
            lr = float(10 ** (-3 + 3 * trial / (trials - 1)))
            status = "diverged" if lr > 0.3 * width else "ok"
            quality = max(0.05, 2 - abs(np.log10(lr / 0.08)) * 1.5 / width)
            write_run(root, method, 100, experiment, "tune", status, lr, quality=quality, trial=trial)
