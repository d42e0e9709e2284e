"""Estimators against naive float64 twins, on all four models, with and without accumulation."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import pytest
import torch
from torch import Tensor, nn

from clipbench.clipping import EmaThreshold, NormClip
from clipbench.estimators import Batch, Estimator, MicroBatch, PerSample
from clipbench.per_sample import PowerThreshold
from tests.estimators.problems import Problem, problem
from tests.reference import estimators as twin

# alexnet_fc has 35 million parameters: a float64 gradient of each sample takes its time.
MODELS = ["mlp", "alexnet", pytest.param("alexnet_fc", marks=pytest.mark.slow), "transformer"]
SAMPLES = {"mlp": 12, "alexnet": 6, "alexnet_fc": 4, "transformer": 6}


def estimate(make: Callable[[nn.Module], Estimator], task: Problem, accumulation: int) -> Tensor:
    """The flat gradient that an estimator leaves for the problem's batch, in `accumulation` micro-batches."""
    estimator = make(task.model)
    task.model.zero_grad()
    total = len(task.inputs)
    size = total // accumulation

    def losses() -> Iterable[Tensor]:
        for start in range(0, total, size):
            yield task.losses(slice(start, start + size))

    estimator(losses(), total)
    return twin.flat(task.model)


def middle_threshold(gradients: list[Tensor]) -> float:
    """An α of PS-Clip that clips about half of the samples."""
    ratios = sorted(float(g.norm()) / math.sqrt(k) for k, g in enumerate(gradients, 1))
    return ratios[len(ratios) // 2]


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("model", MODELS)
def test_batch_is_the_mean(model: str, accumulation: int) -> None:
    task = problem(model, SAMPLES[model])
    gradients = twin.sample_gradients(task.model, task.loss, task.inputs, task.targets)
    expected = torch.stack(gradients).mean(0)
    assert twin.relative_error(estimate(Batch, task, accumulation), expected) < 1e-5


@pytest.mark.parametrize("order", ["given", "reversed"])
@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("model", MODELS)
def test_per_sample_counts_on_and_depends_on_the_order(model: str, accumulation: int, order: str) -> None:
    task = problem(model, SAMPLES[model])
    if order == "reversed":
        task = task._replace(inputs=task.inputs.flip(0), targets=task.targets.flip(0))
    gradients = twin.sample_gradients(task.model, task.loss, task.inputs, task.targets)
    alpha = middle_threshold(gradients)
    expected = twin.ps_clip(gradients, alpha, 2.0)
    found = estimate(lambda m: PerSample(m, PowerThreshold(alpha, 2.0)), task, accumulation)
    assert twin.relative_error(found, expected) < 1e-5
    assert twin.relative_error(found, twin.ps_clip(gradients[::-1], alpha, 2.0)) > 1e-3
    assert twin.relative_error(found, torch.stack(gradients).mean(0)) > 1e-3


@pytest.mark.parametrize("model", MODELS)
def test_micro_batches_are_clipped_one_by_one(model: str) -> None:
    task = problem(model, SAMPLES[model])
    gradients = twin.sample_gradients(task.model, task.loss, task.inputs, task.targets)
    size = len(gradients) // 2
    threshold = 0.6 * float((sum(gradients[:size]) / size).norm())
    found = estimate(lambda m: MicroBatch(m, NormClip(threshold)), task, 2)
    assert twin.relative_error(found, twin.micro_batch_clip(gradients, size, threshold)) < 1e-5
    assert twin.relative_error(found, twin.wrong_micro_batch_clip(gradients, size, threshold)) > 1e-2


def test_estimators_add_to_what_is_there() -> None:
    task = problem("mlp", 12)
    for make in (Batch, lambda m: PerSample(m, 0.5), lambda m: MicroBatch(m, NormClip(0.5))):
        alone = estimate(make, task, 2)
        estimator = make(task.model)
        estimator((task.losses(rows) for rows in (slice(0, 6), slice(6, 12))), 12)
        assert twin.relative_error(twin.flat(task.model), 2 * alone) < 1e-5


def test_an_inner_threshold_sees_every_micro_batch() -> None:
    task = problem("mlp", 12)
    clip = NormClip(EmaThreshold(0.9))
    seen: list[float] = []
    original = clip.__call__

    class Spy(NormClip):
        def __call__(self, named_parameters):  # type: ignore[no-untyped-def]
            stats = original(named_parameters)
            seen.append(float(stats.norm))
            return stats

    estimate(lambda m: MicroBatch(m, Spy(EmaThreshold(0.9))), task, 3)
    gradients = twin.sample_gradients(task.model, task.loss, task.inputs, task.targets)
    means = [float((sum(gradients[i : i + 4]) / 4).norm()) for i in (0, 4, 8)]
    assert seen == pytest.approx(means, rel=1e-5)


def test_a_lost_sample_does_not_end_the_step_but_all_lost_do() -> None:
    task = problem("mlp", 4)
    estimator = PerSample(task.model, 1.0)
    spoiled = task.inputs.clone()
    spoiled[2] = float("inf")
    task = task._replace(inputs=spoiled)
    some = estimator([task.losses(slice(0, 4))], 4)
    assert torch.isfinite(some.loss)
    assert float(some.stats["dropped"]) == 1
    assert all(torch.isfinite(p.grad).all() for p in task.model.parameters() if p.grad is not None)
    every = estimator([task._replace(inputs=spoiled * float("nan")).losses(slice(0, 4))], 4)
    assert torch.isnan(every.loss)
