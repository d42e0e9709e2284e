"""One calibration: the step time of several methods, interleaved in one process, from the same mid-training weights.

On a machine shared with others two runs' seconds cannot be compared. Here every method does the same number of steps
in every round, in an order drawn anew each round, so that a disturbance hits all of them alike; the ratio of the
medians to the baseline's is what is left. The weights are those of plain training, because the cost of some clips
depends on the gradients' spectra; thresholds are those in use (the tuned ones, where there are any).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch

from clipbench.config import schema
from clipbench.errors import ConfigError
from clipbench.timing.interleaved import Ratio, interleave, ratio
from clipbench.training.clock import synchronize
from clipbench.training.setup import Setup, build
from clipbench.training.trainer import Trainer

SHORTEST = 0.02  # seconds of one measurement at least: shorter steps are measured several at a time
MOST_TRAINING = 200  # steps of plain training where the options leave it open


class Timing(NamedTuple):
    """One method: seconds of one step (median), ratio to the baseline, and the spread of its rounds.

    `spread` is the interquartile range over the median, dimensionless.
    """

    step_seconds: float
    ratio: Ratio
    spread: float


class Session(NamedTuple):
    """What was measured: timings by method, steps of one measurement, steps of training before, notes to the user."""

    timings: dict[str, Timing]
    repeats: int
    train_steps: int
    setup: Setup
    notes: list[str]


def session_of(configs: Mapping[str, Mapping[str, Any]], baseline: str) -> Session:
    """Time the methods of `configs` (method → resolved config), all on the same data and device.

    Raises ConfigError where plain training does not stay finite.
    """
    base = build(configs[baseline], schema.check(configs[baseline]))
    calibration = base.options.calibration
    train_steps = calibration.train_steps or max(1, min(MOST_TRAINING, base.steps // 2))
    weights = _train(base, train_steps)
    trainers = {}
    for method, config in configs.items():
        trainers[method] = Trainer(build(config, schema.check(config), base.data))
        trainers[method].setup.model.load_state_dict(weights)
    pace = min(_settle(trainer, train_steps, calibration.settle_steps) for trainer in trainers.values())
    for trainer in trainers.values():
        trainer.setup.model.load_state_dict(weights)
    repeats = max(1, math.ceil(SHORTEST / pace))
    steps = {method: _steps(trainer, train_steps, repeats) for method, trainer in trainers.items()}
    seconds = interleave(steps, calibration.rounds, device=base.device)
    timings = {method: timing(seconds[method], seconds[baseline], repeats) for method in configs}
    notes = [
        f"{method}'s weights were not finite at the end of the measurement: its settings diverge here"
        for method, trainer in trainers.items()
        if not _finite(trainer.setup)
    ]
    return Session(timings, repeats, train_steps, base, notes)


def timing(seconds: list[float], base: list[float], repeats: int) -> Timing:
    """The figures of one method from its rounds' seconds and the baseline's, of `repeats` steps each."""
    low, middle, high = np.quantile(seconds, [0.25, 0.5, 0.75])
    return Timing(float(middle) / repeats, ratio(seconds, base), float((high - low) / middle))


def _train(setup: Setup, steps: int) -> dict[str, torch.Tensor]:
    """The weights after `steps` steps of the baseline."""
    trainer = Trainer(setup)
    setup.model.train()
    for step in range(steps):
        trainer.step(step)
    if not _finite(setup):
        raise ConfigError(
            f"calibration.train_steps must be few enough for the plain training to stay finite, got {steps}"
        )
    return {name: value.detach().clone() for name, value in setup.model.state_dict().items()}


def _settle(trainer: Trainer, start: int, count: int) -> float:
    """Steps that give thresholds and momentum a history; the seconds of the fastest."""
    device, fastest = trainer.setup.device, math.inf
    trainer.setup.model.train()
    for step in range(start, start + count):
        began = time.perf_counter()
        trainer.step(step % trainer.setup.steps)
        synchronize(device)
        fastest = min(fastest, time.perf_counter() - began)
    return max(fastest, 1e-6)


def _steps(trainer: Trainer, start: int, count: int) -> Callable[[], None]:
    """A callable that goes on by `count` steps, with the batches of a run of the experiment's length."""
    done = start

    def run() -> None:
        nonlocal done
        for _ in range(count):
            trainer.step(done % trainer.setup.steps)
            done += 1

    return run


def _finite(setup: Setup) -> bool:
    return all(bool(torch.isfinite(p).all()) for _, p in setup.parameters())
