"""What threads that wait cost on a shared machine: a training step with OpenMP's default and with sleeping threads.

AlexNet's step at batch 128 on all cores, alone and beside as many busy processes as `--beside` says, each in a process
of its own, as the policy is read when OpenMP starts. The cases are taken in turn, round after round.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import torch

from clipbench.bench.overhead import CASES, bare_steps, prepared
from clipbench.bench.waiting_report import tables
from clipbench.cli.command import WAITING
from clipbench.cli.parser import Parser, positive, writable
from clipbench.runs.files import atomic_write
from clipbench.runs.provenance import device_info, versions

NAME = "bench_waiting"
POLICIES = {"default": {}, "passive": {"OMP_WAIT_POLICY": "passive"}}  # by default threads spin before they sleep
CASE = "alexnet, batch 128"
BUSY = "while True: pass"


def main(argv: list[str]) -> None:
    """Measure, print, and write results/data/bench_waiting.parquet and its table."""
    parser = Parser(prog="python -m clipbench.bench waiting", description=__doc__)
    parser.add_argument(
        "--results", type=writable, default="results", help="folder for data/ and tables/ (default: results)"
    )
    parser.add_argument("--rounds", type=positive, default=6, help="rounds of all cases (default: 6)")
    parser.add_argument("--steps", type=positive, default=20, help="steps of a case in a round (default: 20)")
    parser.add_argument("--beside", type=positive, default=1, help="busy processes beside (default: 1)")
    parser.add_argument("--smoke", action="store_true", help="one round of two steps, for tests")
    parser.add_argument("--child", action="store_true", help="measure in this process and print the seconds")
    arguments = parser.parse_args(argv)
    steps = 2 if arguments.smoke else arguments.steps
    if arguments.child:
        print(json.dumps(step_seconds(steps)))
        return
    rows = []
    for number in range(1 if arguments.smoke else arguments.rounds):
        for policy, beside in itertools.product(POLICIES, (0, arguments.beside)):
            with busy(beside):
                seconds = child_seconds(policy, steps)
            rows += [{"round": number, "policy": policy, "beside": beside, "seconds": each} for each in seconds]
            print(f"{policy}, {beside} beside: {1e3 * float(pd.Series(seconds).median()):.0f} ms a step", flush=True)
    info = device_info(torch.device("cpu"))
    found = summary(pd.DataFrame(rows)).assign(
        device=info["name"], cores=info["cores"], torch=versions()["torch"], case=CASE
    )
    results = Path(arguments.results)
    (results / "data").mkdir(parents=True, exist_ok=True)
    atomic_write(results / "data" / f"{NAME}.parquet", lambda path: found.to_parquet(path))
    tables(found, results, NAME)


def summary(rows: pd.DataFrame) -> pd.DataFrame:
    """Median and quartiles of a step's seconds of each case, over all rounds."""
    cases = rows.groupby(["policy", "beside"])["seconds"]
    quartiles = {name: cases.quantile(q) for name, q in (("low", 0.25), ("seconds", 0.5), ("high", 0.75))}
    return pd.DataFrame({**quartiles, "n": cases.size()}).reset_index()


def child_seconds(policy: str, steps: int) -> list[float]:
    """Seconds of each step in a fresh process under that policy."""
    kept = {name: value for name, value in os.environ.items() if name not in (*WAITING, "OMP_NUM_THREADS")}
    words = [sys.executable, "-m", "clipbench.bench", "waiting", "--child", "--steps", str(steps)]
    done = subprocess.run(words, env=kept | POLICIES[policy], capture_output=True, text=True, check=True)
    seconds: list[float] = json.loads(done.stdout.splitlines()[-1])
    return seconds


def step_seconds(steps: int) -> list[float]:
    """Seconds of each of `steps` plain training steps, after two that are not counted."""
    step = bare_steps(prepared(CASES[CASE]), 1)
    step()
    step()
    found = []
    for _ in range(steps):
        before = time.perf_counter()
        step()
        found.append(time.perf_counter() - before)
    return found


@contextlib.contextmanager
def busy(count: int) -> Iterator[list[subprocess.Popen[bytes]]]:
    """So many processes that do nothing but use a core."""
    others = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(count)]
    try:
        yield others
    finally:
        for other in others:
            other.kill()
            other.wait()
