"""What a sweep costs beside training: seconds per run beyond training, and per run that is found done: among others
that are not, where Hydra walks through it and it is skipped, and where all are done, which ends after the plan.
"""

from __future__ import annotations

import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import torch

from clipbench.bench.sweep_report import tables
from clipbench.cli.parser import Parser, positive, writable
from clipbench.runs.files import atomic_write
from clipbench.runs.provenance import device_info, versions

TINY = ["steps=2", "eval_every=2", "log_every=2", "checkpoint_every=2", "dataset.samples=400",
        "dataset.validation=100", "dataset.test=100", "threads=1", "device=cpu"]  # fmt: skip
NAME = "bench_sweep"
METHODS = ("sgd", "norm_clip", "ps_clip", "value_clip")
EMPTY = """\
import hydra
from clipbench.cli.compose import CONFIG_PATH
hydra.main(version_base="1.3", config_path=CONFIG_PATH, config_name="config")(lambda config: None)()
"""
COMMANDS = {"run": ["-m", "clipbench.run"], "empty": ["-c", EMPTY]}
STAMP = re.compile(r"\[(\d+-\d+-\d+ \d+:\d+:\d+,\d+)\]\[HYDRA\] \t#(\d+)")


class Cost(NamedTuple):
    """Seconds per run: wall time of the whole command, of one job (median), and of training within it (mean).

    `command` includes Python's start, the imports, and what the sweep does before its first job and after its last.
    """

    command: float
    job: float
    training: float


def sweep(kind: str, runs: int, results: Path) -> Cost:
    """Time a sweep of `runs` tiny runs, or of as many jobs that do nothing."""
    seeds = f"seed=range({runs // len(METHODS)})"
    words = ["-m", f"method={','.join(METHODS)}", seeds, *TINY, f"paths.results={results}"]
    if kind == "empty":
        words.append("hydra.callbacks={}")
    started = time.perf_counter()
    done = subprocess.run([sys.executable, *COMMANDS[kind], *words], capture_output=True, text=True, check=False)
    wall = time.perf_counter() - started
    if done.returncode != 0:
        raise RuntimeError(f"the sweep ended with status {done.returncode}: {done.stderr.strip()[-300:]}")
    starts = [_seconds(match[1]) for match in STAMP.finditer(done.stdout)]
    jobs = [later - earlier for earlier, later in pairwise(starts)] or [0.0]  # all were done: none was started
    return Cost(wall / runs, statistics.median(jobs), _training(results) / runs if kind == "run" else 0.0)


def _seconds(stamp: str) -> float:
    return pd.Timestamp(stamp.replace(",", ".")).timestamp()


def _training(results: Path) -> float:
    """Seconds that all runs spent on steps and evaluation: what nobody would call overhead."""
    total = 0.0
    for path in results.rglob("run.json"):
        seconds = json.loads(path.read_text(encoding="utf-8"))["seconds"]
        total += seconds["train"] + seconds["setup"] + seconds["evaluation"]
    return total


def main(argv: list[str]) -> None:
    """Measure, print, and write results/data/bench_sweep.parquet and its table."""
    parser = Parser(prog="python -m clipbench.bench sweep", description=__doc__)
    parser.add_argument(
        "--results", type=writable, default="results", help="folder for data/ and tables/ (default: results)"
    )
    parser.add_argument("--runs", type=positive, default=200, help="runs of the sweep (default: 200)")
    parser.add_argument("--smoke", action="store_true", help="a few runs, for tests")
    arguments = parser.parse_args(argv)
    runs = 8 if arguments.smoke else max(len(METHODS), arguments.runs // len(METHODS) * len(METHODS))
    with tempfile.TemporaryDirectory() as folder:
        first = sweep("run", runs, Path(folder, "results"))
        more = sweep("run", runs + len(METHODS), Path(folder, "results"))
        again = sweep("run", runs, Path(folder, "results"))
        empty = sweep("empty", runs, Path(folder, "empty"))
    row = {
        "runs": runs, "overhead_seconds": first.command - first.training, "job_seconds": first.job,
        "training_seconds": first.training, "skipped_seconds": more.job - empty.job,
        "all_done_seconds": again.command, "empty_job_seconds": empty.job,
    }  # fmt: skip
    for line in describe(row):
        print(line)
    write(pd.DataFrame([row]), Path(arguments.results))


def describe(row: dict[str, float]) -> list[str]:
    """The figures in words."""
    ms = {name.removesuffix("_seconds"): f"{1e3 * value:.1f} ms" for name, value in row.items()}
    return [
        f"{row['runs']:.0f} runs: {ms['overhead']} per run beyond training "
        f"(the command's wall time less {ms['training']} of steps and evaluation)",
        f"a run that is skipped among others: {ms['skipped']} beyond an empty Hydra job's {ms['empty_job']} (medians)",
        f"all of them done: {ms['all_done']} per run (the command's wall time)",
    ]


def write(frame: pd.DataFrame, results: Path) -> None:
    """The parquet file and the Markdown table."""
    info = device_info(torch.device("cpu"))
    frame["device"], frame["torch"] = info["name"], versions()["torch"]
    (results / "data").mkdir(parents=True, exist_ok=True)
    atomic_write(results / "data" / f"{NAME}.parquet", lambda path: frame.to_parquet(path))
    tables(frame, results, NAME)
