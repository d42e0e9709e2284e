"""A short run's digest, in a process of its own: read by the interpreter from this text, with any code on its path.

Old code may know nothing of this module, so it uses only what all versions have: composing, executing, a record.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

COLUMNS = ("step", "epoch", "samples", "split", "metric", "value")  # of a row, what is no time
STEPS, STOP = 6, 3  # of a short run, and where it is interrupted and resumed
BATCHED = "together=2"
SHORT = [f"steps={STEPS}", "epochs=null", "eval_every=3", "checkpoint_every=2", "log_every=1", "seed=0", "tuned=none"]


def short_runs(cases: Sequence[Sequence[str]]) -> list[Any]:
    """For each list of overrides [fingerprint, status, rows, digest, finals], or why that run cannot be made."""
    found: list[Any] = []
    for words in cases:
        try:
            found.append((batched if BATCHED in words else lone)([*words, *SHORT]))
        except Exception as error:  # the old code may not know the method: that is an answer
            found.append(f"{type(error).__name__}: {error}".splitlines()[0])
    return found


def lone(words: Sequence[str]) -> list[Any]:
    """Run undisturbed and, beside it, interrupted and resumed. RuntimeError where these two differ."""
    from clipbench.errors import Stopped
    from clipbench.runs.execute import execute

    left = []
    with tempfile.TemporaryDirectory() as folder:
        for name in ("whole", "resumed"):
            config = _config([*words, f"paths.results={folder}/{name}"])
            if name == "resumed":
                with contextlib.suppress(Stopped):
                    execute(config, _nobody, lambda rows: bool(rows) and rows[-1]["step"] >= STOP)
            outcome = execute(config, _nobody)
            rows = _rows(outcome.folder)
            left.append([outcome.info["fingerprint"], outcome.status, *digest(rows), finals([outcome.info])])
    if left[0] != left[1]:
        raise RuntimeError(f"the resumed run differs from the undisturbed one: {left}")
    return left[0]


def batched(words: Sequence[str]) -> list[Any]:
    """Two seeds as one program, with the fingerprint of its code. RuntimeError where they go alone."""
    from clipbench.runs.request import request
    from clipbench.runs.together import run_together

    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        own = [*words, f"paths.results={folder}"]
        outcomes = run_together([request(_config([*own, f"seed={seed}"])) for seed in (0, 1)], _nobody)
        if not outcomes:
            raise RuntimeError("these runs go alone")
        outcomes = sorted(outcomes, key=lambda outcome: int(outcome.info["seed"]))
        for outcome in outcomes:
            rows += _rows(outcome.folder)
    statuses = " ".join(str(outcome.status) for outcome in outcomes)
    infos = [outcome.info for outcome in outcomes]
    return [infos[0]["together_fingerprint"], statuses, *digest(rows), finals(infos)]


def _rows(folder: Path) -> list[dict[str, Any]]:
    """A record's metrics. Not by `clipbench.runs.parquet`, which older code, where this file runs too, has not."""
    import pyarrow.parquet as pq

    path = str(folder / "metrics.parquet")
    rows: list[dict[str, Any]] = pq.ParquetFile(path, pre_buffer=False).read(use_threads=False).to_pylist()
    return rows


def _config(words: Sequence[str]) -> dict[str, Any]:
    """The config of a short run: a warm-up that is longer ends with it."""
    from clipbench.cli.compose import compose

    config = compose(words)
    if "warmup" in config.get("schedule", {}):
        config["schedule"]["warmup"] = min(config["schedule"]["warmup"], STEPS)
    return config


def _nobody(line: str) -> None:
    """Nobody listens."""


def digest(rows: Sequence[Mapping[str, Any]]) -> tuple[int, str]:
    """(number, digest) of the rows that are no time; floats to the last bit."""
    kept = [
        [float(row[name]).hex() if isinstance(row[name], float) else row[name] for name in COLUMNS]
        for row in rows
        if not row["metric"].endswith(("_seconds", "_per_second"))
    ]
    return len(kept), hashlib.sha256(json.dumps(kept).encode()).hexdigest()[:24]


def finals(infos: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Final and best metrics of the records, what is time left out; floats to the last bit."""
    return {
        f"{number} {kind} {name}": float(value).hex()
        for number, info in enumerate(infos)
        for kind in ("final", "best")
        for name, value in info[kind].items()
        if not name.endswith(("_seconds", "_per_second"))
    }


if __name__ == "__main__":
    print(json.dumps(short_runs(json.load(sys.stdin))))
