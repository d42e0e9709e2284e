"""Kills a batch of runs with SIGKILL at random moments until it is done: `… RESULTS KILLS SEED LONGEST WORDS…`.

Each word of WORDS that begins with "+" starts the overrides of another member. Prints one JSON line.
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
from clipbench.runs.request import Request, request
from clipbench.runs.together import run_together


def child(requests: list[Request]) -> int:
    """Execute the batch in a fork; the child's process id."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            torch.set_num_threads(1)
            run_together(requests, lambda line: None)
            status = 0
        finally:
            os._exit(status)
    return pid


def main(results: str, kills: int, seed: int, longest: float, members: list[list[str]]) -> None:
    draws, hit = random.Random(seed), 0
    places = [f"{results}/reference", f"{results}/killed"]
    reference, killed = (
        [request(compose([*words, f"paths.results={place}"])) for words in members] for place in places
    )
    first = os.waitstatus_to_exitcode(os.waitpid(child(reference), 0)[1])
    code = -1
    while code < 0:
        pid = child(killed)
        if hit < kills:
            time.sleep(draws.uniform(0, longest))
            os.kill(pid, signal.SIGKILL)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        hit += code < 0
    print(json.dumps({"reference": first, "killed": code, "kills": hit}))


if __name__ == "__main__":
    groups: list[list[str]] = []
    for word in sys.argv[5:]:
        if word == "+":
            groups.append([])
        else:
            groups[-1].append(word)
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4]), groups)
