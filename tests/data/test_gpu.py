"""Data on a GPU: the same as on the CPU where nothing is drawn there, reproducible where something is."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from clipbench.data import HeavyTailed
from clipbench.training.seeding import generator
from tests.data.test_images import dataset

pytestmark = pytest.mark.gpu
CUDA = torch.device("cuda")


def test_same_pixels_as_on_the_cpu_without_augmentation() -> None:
    there = dataset(False, "cuda").batch(torch.arange(9, device=CUDA), torch.Generator(CUDA)).inputs
    here = dataset(False).batch(torch.arange(9), torch.Generator()).inputs
    torch.testing.assert_close(there.cpu(), here)


def test_an_augmented_batch_is_reproducible_and_waits_for_nothing() -> None:
    data, indices = dataset(device="cuda"), torch.arange(9, device=CUDA)
    draws = [generator(0, "augmentation", 2, device=CUDA) for _ in range(2)]
    torch.cuda.set_sync_debug_mode("error")
    try:
        first, second = data.batch(indices, draws[0]), data.batch(indices, draws[1])
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(first.inputs, second.inputs)


def test_synthetic_data_are_the_same_on_both() -> None:
    dataset, root = HeavyTailed(samples=50, validation=5, test=5), Path()
    there = dataset.load(CUDA, root, 3).batch(torch.arange(50, device=CUDA), torch.Generator(CUDA))
    here = dataset.load(torch.device("cpu"), root, 3).batch(torch.arange(50), torch.Generator())
    assert torch.equal(there.inputs.cpu(), here.inputs)
    assert torch.equal(there.targets.cpu(), here.targets)
