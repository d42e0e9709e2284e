"""What each of two processes does in the tests of data-parallel training; results go to files."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import nullcontext
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from clipbench.per_sample import PerSampleClipper, PowerThreshold
from tests.per_sample.common import square_loss

WORLD = 2
POWER = PowerThreshold(0.5, 2.0)
EVEN, UNEVEN, EMPTY = (4, 4), (5, 3), (6, 0)


class Net(nn.Module):
    """Two layers, one that only inputs with a positive sum use, and one that nothing uses; one parameter is complex."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(6, 5), nn.Linear(5, 3)
        self.sometimes, self.never = nn.Linear(6, 3, bias=False), nn.Linear(2, 2)
        self.filter = nn.Parameter(torch.randn(3, dtype=torch.cdouble))
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        """(n, 6) → (n, 3)."""
        out = self.second(torch.tanh(self.first(x))) + torch.view_as_real(x[:, :3] * self.filter).sum(2)
        return out + self.sometimes(x) if len(x) > 3 else out


def inputs(n: int = 8) -> Tensor:
    """The samples of the whole step."""
    return torch.randn(n, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 2


def part(sizes: tuple[int, ...], place: int) -> Tensor:
    """The samples that come at `place` where consecutive places have `sizes`."""
    return inputs(sum(sizes)).split(list(sizes))[place]


def wrapped(**options: Any) -> DistributedDataParallel:
    return DistributedDataParallel(Net(), find_unused_parameters=True, **options)


def state(model: nn.Module, **more: Any) -> dict[str, Any]:
    """Gradients, and which there are none of."""
    missing = [name.removeprefix("module.") for name, p in model.named_parameters() if p.grad is None]
    return {"gradient": flat_complex(model), "missing": missing, **more}


def flat_complex(model: nn.Module) -> Tensor:
    """`.grad` in one vector, complex entries as two."""
    grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in model.parameters()]
    return torch.cat([(torch.view_as_real(g) if g.is_complex() else g).flatten() for g in grads])


def one_step(threshold: Any, sizes: tuple[int, int], **options: Any) -> Callable[[int], dict[str, Any]]:
    def scenario(rank: int) -> dict[str, Any]:
        model = wrapped()
        mine = threshold.split(list(sizes))[rank] if isinstance(threshold, Tensor) else threshold
        stats = PerSampleClipper(model, mine, **options).backward(square_loss(model, part(sizes, rank)))
        return state(model, norms=stats.norms, thresholds=stats.thresholds)

    return scenario


MICRO = (3, 2, 1, 2)  # samples of rank 0 and 1 in the first part, then in the second


def accumulated(local: bool) -> Callable[[int], dict[str, Any]]:
    """Two parts a rank, uneven; the first under no_sync(), or not."""

    def scenario(rank: int) -> dict[str, Any]:
        model = wrapped()
        clipper = PerSampleClipper(model, POWER)
        total = MICRO[rank] + MICRO[2 + rank]
        with model.no_sync() if local else nullcontext():
            clipper.backward(square_loss(model, part(MICRO, rank)), total=total)
        clipper.backward(square_loss(model, part(MICRO, 2 + rank)), offset=MICRO[rank], total=total)
        return state(model)

    return scenario


def thrice(rank: int) -> dict[str, Any]:
    """A whole step, one under no_sync() and one more, without zero_grad between: three times the same gradient."""
    model = wrapped()
    clipper = PerSampleClipper(model, POWER)
    for place in range(3):
        with model.no_sync() if place == 1 else nullcontext():
            clipper.backward(square_loss(model, part(EVEN, rank)))
    return state(model)


def beside_its_own_backward(rank: int) -> dict[str, Any]:
    """Plain DistributedDataParallel steps before and after ours go on as they were."""
    model = wrapped()
    clipper = PerSampleClipper(model, POWER)
    results = []
    for _ in range(2):
        model.zero_grad()
        square_loss(model, part(EVEN, rank)).mean().backward()
        results.append(flat_complex(model))
        model.zero_grad()
        clipper.backward(square_loss(model, part(EVEN, rank)))
    return state(model, plain=results)


def training(rank: int) -> dict[str, Any]:
    model = wrapped()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    clipper = PerSampleClipper(model, POWER)
    for _ in range(4):
        optimizer.zero_grad()
        clipper.backward(square_loss(model, part(UNEVEN, rank)))
        optimizer.step()
    return {"weights": torch.cat([p.detach().abs().flatten() for p in model.parameters()])}


def over_a_group(choice: str, build: Callable[[], nn.Module] = Net) -> Callable[[int], dict[str, Any]]:
    """A model that is not wrapped, or one whose wrapper is not asked."""

    def scenario(rank: int) -> dict[str, Any]:
        model = build()
        group = dist.group.WORLD if choice == "world" else None
        PerSampleClipper(model, POWER, process_group=group).backward(square_loss(model, part(EVEN, rank)))
        return state(model)

    return scenario


def lost_on_one(nonfinite: str, scale: float) -> Callable[[int], dict[str, Any]]:
    """The second sample of rank 1 is not finite."""

    def scenario(rank: int) -> dict[str, Any]:
        model = wrapped()
        x = part(EVEN, rank).clone()
        if rank == 1:
            x[1] = torch.inf
        clipper = PerSampleClipper(model, POWER, nonfinite=nonfinite)  # type: ignore[arg-type]
        stats = clipper.backward(square_loss(model, x) * scale, scale=scale)
        return state(model, dropped=stats.dropped)

    return scenario


def refused(make: Callable[[], nn.Module], **options: Any) -> Callable[[int], dict[str, Any]]:
    def scenario(rank: int) -> dict[str, Any]:
        model = make()
        PerSampleClipper(model, POWER, **options).backward(square_loss(model, part(EVEN, rank)))
        return {}

    return scenario


def sharded() -> nn.Module:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    model = nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 4)).double()
    fully_shard(model, mesh=init_device_mesh("cpu", (WORLD,)))
    return model


def tensor_parallel() -> nn.Module:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

    model = nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 4)).double()
    mesh = init_device_mesh("cpu", (WORLD,))
    return parallelize_module(model, mesh, {"0": ColwiseParallel(), "1": RowwiseParallel()})  # type: ignore[return-value]


def wrapped_statically() -> nn.Module:
    return DistributedDataParallel(nn.Linear(6, 4).double(), static_graph=True)


SCENARIOS: dict[str, Callable[[int], dict[str, Any]]] = {
    "even": one_step(0.7, EVEN),
    "even, power": one_step(POWER, EVEN),
    "uneven": one_step(0.7, UNEVEN),
    "uneven, power": one_step(POWER, UNEVEN),
    "uneven, tensor": one_step(torch.linspace(0.1, 5.0, 8).double(), UNEVEN),
    "uneven, verified": one_step(POWER, UNEVEN, verify=True),
    "one rank without data": one_step(POWER, EMPTY),
    "accumulated": accumulated(local=False),
    "accumulated, no_sync": accumulated(local=True),
    "thrice": thrice,
    "beside its own backward": beside_its_own_backward,
    "training": training,
    "group": over_a_group("world"),
    "alone": over_a_group("none"),
    "alone, though wrapped": over_a_group("none", wrapped),
    "lost": lost_on_one("drop", 1.0),
    "lost, scaled": lost_on_one("drop", 64.0),
    "lost, raised": lost_on_one("raise", 1.0),
    "not wrapped": refused(Net),
    "static graph": refused(wrapped_statically),
    "sharded": refused(sharded),
    "tensor parallel": refused(tensor_parallel),
}


def work(rank: int, folder: str) -> None:
    """All scenarios on one rank; an error is a result."""
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=WORLD,
                            timeout=timedelta(seconds=60))  # fmt: skip
    results: dict[str, Any] = {}
    for name, scenario in SCENARIOS.items():
        try:
            results[name] = scenario(rank)
        except Exception as error:
            results[name] = {"error": f"{type(error).__name__}: {error}"}
        dist.barrier()
    torch.save(results, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()
