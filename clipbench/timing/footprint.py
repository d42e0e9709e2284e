"""Peak memory and set-up time of one method, in a process of its own (`python -m clipbench.timing.footprint`).

The resolved config comes on standard input and the figures go out as one line of JSON. In a process that several
methods share, the allocator's pools and the largest method's peak would be everybody's.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

STEPS = 3  # after the first one the optimizer's and the clipper's state are there


class Footprint(NamedTuple):
    """Seconds of a fresh process' first step, largest memory in use while stepping, memory before the first step.

    Memory in bytes: on the device for CUDA, resident in the process for a CPU.
    """

    setup_seconds: float
    peak_memory_bytes: int
    base_memory_bytes: int


def footprint(config: Mapping[str, Any]) -> Footprint:
    """Measure `config` in a fresh process. Raises RuntimeError with the process' last words where it fails."""
    command = [sys.executable, "-m", "clipbench.timing.footprint"]
    done = subprocess.run(command, input=json.dumps(config), capture_output=True, text=True, check=False)
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise RuntimeError(f"the memory of {config['method']['name']} could not be measured: {last}")
    return Footprint(**json.loads(done.stdout.splitlines()[-1]))


def measure_here(config: Mapping[str, Any]) -> Footprint:
    """The figures of `config` in this process, which must have done nothing else."""
    from clipbench.config import schema
    from clipbench.runs import memory
    from clipbench.training.clock import synchronize
    from clipbench.training.setup import build
    from clipbench.training.trainer import Trainer

    setup = build(config, schema.check(config))
    trainer = Trainer(setup)
    setup.model.train()
    memory.trim()  # what loading the data left free
    memory.forget_peak(setup.device)
    base = memory.in_use(setup.device)
    began = time.perf_counter()
    trainer.step(0)
    synchronize(setup.device)
    seconds = time.perf_counter() - began
    for step in range(1, STEPS):
        trainer.step(step % setup.steps)
    synchronize(setup.device)
    return Footprint(seconds, memory.peak(setup.device), base)


if __name__ == "__main__":
    print(json.dumps(measure_here(json.load(sys.stdin))._asdict()))
