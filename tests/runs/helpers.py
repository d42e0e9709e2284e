"""Small runs for the tests: fast settings, and the comparison of two records."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

TINY = ["steps=30", "eval_every=10", "log_every=5", "checkpoint_every=10", "dataset.samples=400",
        "dataset.validation=100", "dataset.test=100"]  # fmt: skip


def start(results: Path, *overrides: str, **options: Any) -> subprocess.Popen[str]:
    """`python -m clipbench.run` in a process of its own."""
    command = [sys.executable, "-m", "clipbench.run", f"paths.results={results}", "device=cpu", *overrides]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=results, **options)


def info(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "run.json").read_text())
    return found


def values(folder: Path) -> list[tuple[Any, ...]]:
    """The record's metric rows without anything that is a time; floats as exact hexadecimal."""
    rows = pq.read_table(folder / "metrics.parquet").to_pylist()
    return [
        (row["step"], row["epoch"], row["samples"], row["split"], row["metric"], float(row["value"]).hex())
        for row in rows
        if not row["metric"].endswith(("_seconds", "_per_second"))
    ]
