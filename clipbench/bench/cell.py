"""The child process of one measurement: `python -m clipbench.bench.cell '<job as JSON>'` prints its result as JSON."""

from __future__ import annotations

import copy
import json
import math
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from clipbench.bench.models_cell import exactness
from clipbench.bench.peers import ENGINES, optimizer_step, quiet
from clipbench.bench.problems import Problem, problem
from clipbench.runs.memory import forget_resident_peak, resident, resident_peak
from clipbench.timing.interleaved import interleave

SAMPLES = 8  # of the batch on which gradients are compared
CALL = 0.25  # seconds a timed call should last at least: as many steps, as in training one after the other
FAST = ("sgd", "clipbench")  # these two share one half of a cell's time, the peers the other


def errors(model: str, engines: list[str]) -> dict[str, Any]:
    """Largest error of each engine's gradient over the largest entry of the whole gradient, and the threshold.

    The truth is plain autograd in float64, one sample at a time. The threshold is the median of its norms, so
    that about half of the samples are clipped. An engine that fails has words instead of a number.
    """
    found: dict[str, Any] = {}
    base = problem(model, SAMPLES, dropout=False)
    gradients = [torch.cat([g.flatten() for g in sample]) for sample in one_by_one(base)]
    norms = torch.stack([gradient.norm() for gradient in gradients])
    threshold = norms.median().item()
    for engine in engines:
        gamma = torch.ones_like(norms) if engine == "sgd" else (threshold / norms).clamp(max=1.0)
        truth = sum((w * g for w, g in zip(gamma, gradients, strict=True)), torch.tensor(0.0)) / len(gradients)
        try:
            ours = gradient_of(engine, base, threshold)
            found[engine] = ((ours.double() - truth).abs().max() / truth.abs().max()).item()
        except ImportError as missing:
            found[engine] = f"not installed: {missing.name}"
        except Exception as error:  # a peer that cannot do a model is a finding of this table
            found[engine] = f"failed: {str(error).splitlines()[0]}"
    return {"errors": found, "threshold": threshold}


def one_by_one(base: Problem) -> list[tuple[Tensor, ...]]:
    """Every sample's gradients in float64, by plain autograd on a batch of one."""
    model = copy.deepcopy(base.model).double()
    result = []
    for sample, target in zip(base.inputs.split(1), base.targets.split(1), strict=True):
        double = [t.double() if t.is_floating_point() else t for t in (sample, target)]
        loss = base.losses(model(double[0]), double[1])
        result.append(torch.autograd.grad(loss.sum(), list(model.parameters())))
    return result


def gradient_of(engine: str, base: Problem, threshold: float, chunk: int = 0) -> Tensor:
    """All of the `.grad` that an engine leaves, as one vector in the order of the model's parameters."""
    quiet()
    own = base._replace(model=copy.deepcopy(base.model))
    optimizer = torch.optim.SGD(own.model.parameters(), lr=0.0)
    ENGINES[engine](own, optimizer, threshold, chunk)()
    return torch.cat([p.grad.flatten() for p in own.model.parameters() if p.grad is not None])


def memory(model: str, batch: int, engine: str, chunk: int, threshold: float) -> dict[str, Any]:
    """Bytes by which the resident size peaks, in two steps, over what it was before the first."""
    step = optimizer_step(engine, problem(model, batch), threshold, chunk)
    forget_resident_peak()
    before = resident()
    for _ in range(2):  # momentum and the second step's activations are there together
        step()
    peak = resident_peak()
    return {"bytes": None if before is None or peak is None else peak - before}


def timing(
    model: str, batch: int, chunks: dict[str, int], threshold: float, budget: float, most: int
) -> dict[str, Any]:
    """Seconds per step of each engine of `chunks`, one list each; index i belongs to the same round in all.

    budget: seconds that all rounds may take together; most: rounds of an engine.
    """
    steps = {name: optimizer_step(name, problem(model, batch), threshold, chunk) for name, chunk in chunks.items()}
    first = {name: warm_seconds(step) for name, step in steps.items()}
    times = {name: math.ceil(CALL / seconds) for name, seconds in first.items()}
    rounds = rounds_within({name: times[name] * seconds for name, seconds in first.items()}, budget, most)
    seconds = in_blocks({name: repeated(step, times[name]) for name, step in steps.items()}, rounds)
    return {"seconds": {name: [s / times[name] for s in each] for name, each in seconds.items()}}


def warm_seconds(step: Callable[[], object]) -> float:
    """Seconds of a step after its first, which pays for allocation; of a slow one the first."""
    for _ in range(3):
        start = time.perf_counter()
        step()
        seconds = time.perf_counter() - start
        if seconds > 1:
            break
    return seconds


def rounds_within(calls: Mapping[str, float], budget: float, most: int) -> dict[str, int]:
    """Rounds of each engine from the seconds of one call: what the budget allows, between a least number and `most`.

    One half of the budget is for plain SGD and clipbench, at least 15 rounds; the peers share the other, at least 3.
    """
    peers = [name for name in calls if name not in FAST]
    fast = sum(calls[name] for name in calls if name in FAST)
    rounds = {name: min(max(15, int(budget / 2 / fast)), most) for name in calls if name in FAST}
    share = budget / 2 / max(1, len(peers))
    return rounds | {name: min(max(3, int(share / calls[name])), *rounds.values()) for name in peers}


def in_blocks(steps: Mapping[str, Callable[[], object]], rounds: Mapping[str, int]) -> dict[str, list[float]]:
    """Interleaved rounds of all; an engine whose rounds are used up stays away from the later ones."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    done = 0
    for level in sorted(set(rounds.values())):
        active = {name: step for name, step in steps.items() if rounds[name] >= level}
        for name, more in interleave(active, level - done, warmup=0, seed=level).items():
            seconds[name] += more
        done = level
    return seconds


def repeated(step: Callable[[], object], times: int) -> Callable[[], None]:
    """A call that makes `times` steps."""

    def call() -> None:
        for _ in range(times):
            step()

    return call


JOBS: dict[str, Callable[..., dict[str, Any]]] = {
    "errors": errors,
    "memory": memory,
    "timing": timing,
    "exactness": exactness,
}


def run(job: Mapping[str, Any]) -> dict[str, Any]:
    """Do what `job` says: {"job": one of JOBS, "threads": n, and that function's arguments}."""
    rest = dict(job)
    torch.set_num_threads(rest.pop("threads"))
    return JOBS[rest.pop("job")](**rest)


if __name__ == "__main__":
    print(json.dumps(run(json.loads(sys.argv[1]))))
