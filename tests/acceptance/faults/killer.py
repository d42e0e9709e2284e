"""Kills a sweep or a tuning with SIGKILL at random moments until it is done.

`python -m tests.acceptance.faults.killer LOG KILLS SEED LONGEST WORKERS run|tune ARGUMENTS…`: WORKERS processes with
the same command line; each kill hits one of them, which is started anew. They are forked from a process that has
imported everything and computed nothing, so that a kill lands inside the work, not inside the start of Python. Prints
one JSON line.
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
from clipbench.runs.fingerprint import fingerprint
from tests.acceptance.faults.counted import call, count


def child(which: str, arguments: list[str]) -> int:
    """A worker in a fork; its process id."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - until the process ends
            torch.set_num_threads(1)
            call(which, arguments)
            status = 0
        finally:
            os._exit(status)
    return pid


def kill_until_done(
    which: str, arguments: list[str], kills: int, longest: float, workers: int, draws: random.Random
) -> int:
    """The number of kills that hit a living worker; the last workers end undisturbed. RuntimeError where one fails."""
    alive = {child(which, arguments) for _ in range(workers)}
    hit = 0
    while alive:
        if hit < kills:
            time.sleep(draws.uniform(0, longest))
            victim = draws.choice(sorted(alive))
            os.kill(victim, signal.SIGKILL)
        else:
            victim = next(iter(alive))
        code = os.waitstatus_to_exitcode(os.waitpid(victim, 0)[1])
        alive.remove(victim)
        if code == -signal.SIGKILL:
            hit += 1
            alive.add(child(which, arguments))
        elif code != 0:
            raise RuntimeError(f"a worker ended with status {code}")
    return hit


def main(log: str, kills: int, seed: int, longest: float, workers: int, which: str, arguments: list[str]) -> None:
    import clipbench.runs.sweep
    import clipbench.training.trainer
    import clipbench.tuning  # noqa: F401 - imported before the forks

    fingerprint(compose([]))  # likewise computed once
    count(log)
    hit = kill_until_done(which, arguments, kills, longest, workers, random.Random(seed))
    print(json.dumps({"kills": hit}))


if __name__ == "__main__":
    main(
        sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4]), int(sys.argv[5]), sys.argv[6], sys.argv[7:]
    )
