"""Interleaved timing: several callables measured in one process, in random order, and compared as ratios.

On a machine shared with others, seconds measured at different moments cannot be compared. What can be compared
is one round against itself: every callable is timed once per round, the order is drawn anew each round, and a
disturbance that lasts longer than a round hits all of them alike.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch

from clipbench.training.clock import synchronize


class Ratio(NamedTuple):
    """Ratio of medians with a 95 % percentile-bootstrap interval over `n` rounds (dimensionless)."""

    estimate: float
    low: float
    high: float
    n: int


def interleave(
    steps: Mapping[str, Callable[[], object]],
    rounds: int,
    warmup: int = 3,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> dict[str, list[float]]:
    """Seconds of each callable in each round; lists of length `rounds`, index i belongs to the same round in all.

    `warmup` untimed rounds come first: the first calls pay for allocation, autotuning and compilation.
    """
    if rounds < 1:
        raise ValueError(f"rounds must be >= 1, got {rounds}")
    names = list(steps)
    order = random.Random(seed)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for index in range(-warmup, rounds):
        for name in order.sample(names, len(names)):
            synchronize(device)
            start = time.perf_counter()
            steps[name]()
            synchronize(device)
            if index >= 0:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def ratio(seconds: Sequence[float], base: Sequence[float], resamples: int = 2000, seed: int = 0) -> Ratio:
    """median(seconds) / median(base), with an interval from resampling ROUNDS (both columns together).

    Raises ValueError where the two columns do not come from the same rounds.
    """
    if len(seconds) != len(base) or not seconds:
        raise ValueError(f"seconds must hold the same rounds as base, got {len(seconds)} and {len(base)}")
    top, bottom = np.asarray(seconds), np.asarray(base)
    draws = np.random.default_rng(seed).integers(0, len(top), size=(resamples, len(top)))
    spread = np.median(top[draws], axis=1) / np.median(bottom[draws], axis=1)
    low, high = np.quantile(spread, [0.025, 0.975])
    return Ratio(float(np.median(top) / np.median(bottom)), float(low), float(high), len(top))
