"""Kills a run with SIGKILL at random moments until it is done; `python -m tests.runs.killer RESULTS KILLS SEED …`.

Children are forked from a process that has imported everything and computed nothing, so that a kill costs
milliseconds and lands inside the run, not inside the start of Python. Prints one JSON line.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time

import torch

from clipbench.cli.compose import compose
from clipbench.runs import execute as runner


def child(overrides: list[str]) -> int:
    """Execute the run in a fork; the child's process id."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            torch.set_num_threads(1)
            runner.execute(compose(overrides), say=lambda line: None)
            status = 0
        finally:
            os._exit(status)
    return pid


def kill_until_done(overrides: list[str], kills: int, longest: float, draws: random.Random) -> tuple[int, int]:
    """(kills that hit a living run, exit status of the last, undisturbed child)."""
    hit = 0
    while True:
        pid = child(overrides)
        if hit >= kills:
            return hit, os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        time.sleep(draws.uniform(0, longest))
        os.kill(pid, signal.SIGKILL)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        if code >= 0:
            return hit, code
        hit += 1


def main(results: str, kills: int, seed: int, longest: float, overrides: list[str]) -> None:
    common = [*overrides, "device=cpu", "threads=1"]
    _, status = kill_until_done([*common, f"paths.results={results}/reference"], 0, 0.0, random.Random(0))
    hit, killed_status = kill_until_done(
        [*common, f"paths.results={results}/killed"], kills, longest, random.Random(seed)
    )
    print(json.dumps({"reference": status, "killed": killed_status, "kills": hit}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4]), sys.argv[5:])
