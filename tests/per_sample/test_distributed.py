"""Two processes under DistributedDataParallel against one process on the whole batch."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from clipbench.per_sample import PerSampleClipper
from clipbench.per_sample.distributed import BUCKET, _buckets
from tests.per_sample.common import square_loss
from tests.per_sample.ranks import EMPTY, EVEN, MICRO, POWER, UNEVEN, WORLD, Net, flat_complex, inputs, work

pytestmark = pytest.mark.slow  # two processes start

Results = list[dict[str, Any]]
TAU = torch.linspace(0.1, 5.0, 8).double()


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """What each rank found, by scenario: all in one pair of processes."""
    folder = tmp_path_factory.mktemp("ranks")
    context = torch.multiprocessing.spawn(work, (str(folder),), nprocs=WORLD, join=False)
    deadline = time.monotonic() + 300
    while not context.join(timeout=1):
        if time.monotonic() > deadline:
            for process in context.processes:
                process.kill()
            pytest.fail("the ranks wait for each other")
    return [torch.load(Path(folder) / f"{rank}.pt") for rank in range(WORLD)]


def alone(threshold: Any, parts: list[Tensor], order: list[int] | None = None) -> tuple[Tensor, Tensor]:
    """Gradient and norms of one process, by autograd sample by sample; each part is a forward of its own."""
    model = Net()
    params = list(model.parameters())
    norms, total, k = [], [torch.zeros_like(p) for p in params], 0
    n = sum(len(x) for x in parts)
    for x in parts:
        for loss in square_loss(model, x) if len(x) else []:
            grads = torch.autograd.grad(loss, params, retain_graph=True, allow_unused=True)
            norm = float(sum(g.abs().square().sum() for g in grads if g is not None)) ** 0.5
            k += 1
            tau = float(threshold[k - 1]) if isinstance(threshold, Tensor) else threshold
            tau = tau if isinstance(tau, float) else POWER.alpha * k ** (1.0 / POWER.beta)
            for t, g in zip(total, grads, strict=True):
                if g is not None:
                    t += g * (min(1.0, tau / norm) / n)
            norms.append(norm)
    flat = torch.cat([(torch.view_as_real(t) if t.is_complex() else t).flatten() for t in total])
    return flat, torch.tensor(norms, dtype=torch.float64)


def close(found: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize(
    ("name", "threshold", "sizes"),
    [
        ("even", 0.7, EVEN),
        ("even, power", POWER, EVEN),
        ("uneven", 0.7, UNEVEN),
        ("uneven, power", POWER, UNEVEN),
        ("uneven, tensor", TAU, UNEVEN),
        ("uneven, verified", POWER, UNEVEN),
        ("one rank without data", POWER, EMPTY),
        ("group", POWER, EVEN),
    ],
)
def test_a_step_is_one_process_step(results: Results, name: str, threshold: Any, sizes: tuple[int, int]) -> None:
    wanted, norms = alone(threshold, list(inputs(sum(sizes)).split(list(sizes))))
    for rank in range(WORLD):
        assert "error" not in results[rank][name], results[rank][name]
        close(results[rank][name]["gradient"], wanted)
    if name != "group":
        close(torch.cat([results[rank][name]["norms"] for rank in range(WORLD)]), norms)


@pytest.mark.parametrize("name", ["accumulated", "accumulated, no_sync"])
def test_accumulation(results: Results, name: str) -> None:
    """k counts over the first parts of both ranks, then over the second ones; the mean is over all samples."""
    wanted, _ = alone(POWER, list(inputs(sum(MICRO)).split(list(MICRO))))
    for rank in range(WORLD):
        close(results[rank][name]["gradient"], wanted)


def test_gradients_add_up_whether_reduced_or_waiting(results: Results) -> None:
    wanted, _ = alone(POWER, list(inputs().split(list(EVEN))))
    for rank in range(WORLD):
        close(results[rank]["thrice"]["gradient"], 3 * wanted)


def test_its_own_backward_is_left_alone(results: Results) -> None:
    wanted, _ = alone(POWER, list(inputs().split(list(EVEN))))
    plain, _ = alone(1e9, list(inputs().split(list(EVEN))))
    for rank in range(WORLD):
        found = results[rank]["beside its own backward"]
        close(found["gradient"], wanted)
        for gradient in found["plain"]:
            close(gradient, plain)


def test_weights_stay_equal_and_follow_one_process(results: Results) -> None:
    assert torch.equal(results[0]["training"]["weights"], results[1]["training"]["weights"])
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for _ in range(4):
        optimizer.zero_grad()
        clipper = PerSampleClipper(model, POWER)
        first, second = inputs().split(list(UNEVEN))
        clipper.backward(square_loss(model, first), total=8)
        clipper.backward(square_loss(model, second), offset=5, total=8)
        optimizer.step()
    close(results[0]["training"]["weights"], torch.cat([p.detach().abs().flatten() for p in model.parameters()]))


def test_a_parameter_that_no_rank_uses_has_no_gradient(results: Results) -> None:
    for rank in range(WORLD):
        assert results[rank]["even"]["missing"] == ["never.weight", "never.bias"]
        # One rank alone uses `sometimes` here: both have its gradient.
        assert results[rank]["uneven"]["missing"] == ["never.weight", "never.bias"]


@pytest.mark.parametrize("name", ["alone", "alone, though wrapped"])
def test_a_process_that_trains_alone_reduces_nothing(results: Results, name: str) -> None:
    for rank, x in enumerate(inputs().split(list(EVEN))):
        close(results[rank][name]["gradient"], alone(POWER, [x])[0])


def test_a_lost_sample_is_lost_on_all_ranks(results: Results) -> None:
    kept = inputs().clone()
    model = Net()
    kept[5] = torch.inf
    clipper = PerSampleClipper(model, POWER)
    for place, x in enumerate(kept.split(list(EVEN))):
        clipper.backward(square_loss(model, x), offset=4 * place, total=8)
    for rank in range(WORLD):
        close(results[rank]["lost"]["gradient"], flat_complex(model))
        assert results[rank]["lost"]["gradient"].isfinite().all()
        assert results[rank]["lost"]["dropped"] == rank
        assert results[rank]["lost, scaled"]["gradient"].isnan().any()
        assert "FloatingPointError: 1 of" in results[rank]["lost, raised"]["error"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("not wrapped", "ValueError: model must be the DistributedDataParallel wrapper, or process_group say"),
        ("static graph", "ValueError: model must reduce nothing by itself in a backward pass, got .*static_graph=True"),
        ("sharded", "ValueError: model must hold whole parameters on every rank, got FSDPSequential ''"),
        ("tensor parallel", "ValueError: model must hold whole parameters on every rank, got '0.weight' as a DTensor"),
    ],
)
def test_what_cannot_be_reduced_is_refused(results: Results, name: str, message: str) -> None:
    for rank in range(WORLD):
        assert re.match(message, results[rank][name]["error"]), results[rank][name]


def test_gradients_travel_together() -> None:
    small, large = torch.zeros(10), torch.zeros(BUCKET // 8 + 1)
    other = torch.zeros(3, dtype=torch.float64)
    grads = [small, other, large, large.clone(), small.clone()]
    assert [len(bucket) for bucket in _buckets(grads)] == [2, 2, 1]
    assert list(_buckets([])) == []
