"""Every block of the page about other people's loops: the step it takes against one computed by hand."""

from __future__ import annotations

import copy
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.integrations.blocks import begin, blocks, keep, step
from tests.reference.frozen import HandNorm
from tests.reference.in_your_loop import Gradient, mean, norm_clipped, sample_gradients, spectrally_clipped

pytestmark = pytest.mark.slow  # the libraries take their time to be imported


def power(k: int) -> float:
    return 0.1 * k**0.5


def infinite(k: int) -> float:
    return float("inf")


def losses(space: dict[str, Any]) -> list[Gradient]:
    """Each sample's gradient at the weights of the page's beginning."""
    return sample_gradients(
        space["model"], lambda model: nn.CrossEntropyLoss(reduction="none")(model(space["x"].double()), space["y"])
    )


def same(found: Gradient, wanted: Gradient, tolerance: float = 1e-5) -> None:
    """Largest difference over the largest entry of the whole gradient."""
    size = max(float(value.abs().max()) for value in wanted.values())
    for name, value in wanted.items():
        assert float((found[name] - value).abs().max()) <= tolerance * size, name


def clips(gradients: list[Gradient], tau: Any) -> None:
    """Whether the reference itself is of some samples clipped."""
    free, cut = mean(gradients, infinite), mean(gradients, tau)
    assert max(float((free[n] - cut[n]).abs().max()) for n in free) > 1e-2 * max(
        float(v.abs().max()) for v in free.values()
    )


def test_every_block_is_tried() -> None:
    assert {title: len(codes) for title, codes in blocks().items()} == {
        "Clip in your own loop": 1, "A plain loop with a GradScaler": 1, "BatchNorm in training": 2,
        "Hugging Face Trainer": 2, "Lightning": 2,
        "Accelerate": 1, "DistributedDataParallel": 1,
    }  # fmt: skip


@pytest.mark.parametrize("title", ["A plain loop with a GradScaler", "Lightning", "Accelerate"])
def test_two_parts_of_one_step(tmp_path: Path, title: str) -> None:
    space = begin(folder=str(tmp_path))
    gradients = losses(space)
    clips(gradients, power)
    exec(blocks()[title][0], space)
    same(step(space), mean(gradients, power))


def test_frozen_statistics() -> None:
    space = begin()
    make, take = blocks()["BatchNorm in training"]
    exec(make, space)
    twin = copy.deepcopy(keep(space)["model"])
    del twin[1].forward
    twin[1] = HandNorm(twin[1])
    gradients = losses({**space, "model": twin})
    clips(gradients, power)
    plain = copy.deepcopy(space["model"])
    del plain[1].forward
    one = losses({**space, "model": plain})  # gradients of single losses that pass the statistics
    assert max(float((mean(one, power)[n] - mean(gradients, power)[n]).abs().max()) for n in one[0]) > 1e-2
    exec(take, space)
    same(step(space), mean(gradients, power))
    assert "forward" not in vars(space["model"][1])


def test_lightning_by_hand(tmp_path: Path) -> None:
    space = begin(folder=str(tmp_path))
    exec(blocks()["Lightning"][0], space)
    gradients = losses(keep(space))
    exec(blocks()["Lightning"][1], space)
    wanted = spectrally_clipped(mean(gradients, infinite), 0.02)
    same(step(space), wanted, 1e-4)


@pytest.mark.parametrize("bf16", [False, True])
def test_hugging_face(tmp_path: Path, bf16: bool) -> None:
    space = begin(folder=str(tmp_path), bf16=bf16)
    rule, mixin = blocks()["Hugging Face Trainer"]
    exec(rule, space)
    model = copy.deepcopy(space["model"])
    model.load_state_dict(space["start"])
    space["before"] = {name: value.detach().double().clone() for name, value in model.named_parameters()}

    def sample_losses(model: nn.Module) -> Tensor:
        ids = torch.stack([row["input_ids"] for row in space["data"]])
        return nn.functional.cross_entropy(model(input_ids=ids).logits, space["y"], reduction="none")

    gradients = sample_gradients(model, sample_losses)
    tolerance = 0.1 if bf16 else 1e-3  # eight bits of bf16; else what is left of weights near 1 in float32
    whole = mean(gradients, infinite)
    assert sum(float(value.square().sum()) for value in whole.values()) ** 0.5 > 0.02
    same(step(space), norm_clipped(whole, 0.01), tolerance)
    exec(mixin, space)
    clips(gradients, lambda k: 0.2)
    same(step(space), mean(gradients, lambda k: 0.2), tolerance)


def rank(number: int, port: int, folder: str) -> None:
    """One of two processes."""
    torch.distributed.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=number, world_size=2)
    space = begin()
    exec(blocks()["DistributedDataParallel"][0], space)
    torch.save(step(space), f"{folder}/{number}.pt")
    torch.distributed.destroy_process_group()


def test_two_ranks(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(rank, (port, str(tmp_path)), nprocs=2)
    wanted = mean(losses(begin()), power)
    for number in range(2):
        same(torch.load(tmp_path / f"{number}.pt"), wanted)
