"""Synthetic data: where the noise is, where it is not, and what the seeds decide."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from clipbench.data import HeavyTailed
from clipbench.data.heavy_tailed import Teacher
from clipbench.data.vectors import VectorData
from clipbench.training.seeding import generator

CPU = torch.device("cpu")
SMALL: dict[str, Any] = {"samples": 60, "validation": 30, "test": 20, "features": 5}


def load(split_seed: int = 0, **options: Any) -> VectorData:
    return HeavyTailed(**SMALL | options).load(CPU, Path("does not exist"), split_seed)


def whole(data: VectorData, split: str) -> tuple[Tensor, Tensor]:
    (batch,) = data.evaluation(split, 5000)
    return batch.inputs, batch.targets


@pytest.mark.parametrize("problem", ["regression", "classification"])
@pytest.mark.parametrize("place", ["inputs", "labels", "gradients"])
def test_noise_is_where_it_should_be(problem: Any, place: Any) -> None:
    options = {"problem": problem, "outputs": 3, "noise_on": place, "scale": 5.0}
    noisy, clean = load(**options), load(**options | {"noise": "none"})
    for split in ("validation", "test"):
        for one, other in zip(whole(noisy, split), whole(clean, split), strict=True):
            assert torch.equal(one, other)
    same = [torch.equal(a, b) for a, b in zip(whole(noisy, "train"), whole(clean, "train"), strict=True)]
    assert same == [place != "inputs", place != "labels"]
    batch = noisy.batch(torch.arange(4), generator(0, "augmentation"))
    assert (batch.output_noise is not None) == (place == "gradients")


def test_gradient_noise_is_fresh_at_every_visit_and_follows_the_generator() -> None:
    data, indices = load(noise_on="gradients", outputs=2), torch.zeros(6, dtype=torch.int64)
    first = data.batch(indices, generator(0, "augmentation", 1)).output_noise
    again = data.batch(indices, generator(0, "augmentation", 1)).output_noise
    later = data.batch(indices, generator(0, "augmentation", 2)).output_noise
    assert first is not None
    assert again is not None
    assert later is not None
    assert first.shape == (6, 2)
    assert torch.equal(first, again)
    assert not torch.equal(first, later)
    assert len(first[:, 0].unique()) == 6  # the same sample six times, six draws


def test_data_follow_the_split_seed_alone() -> None:
    first = whole(load(0), "train")
    torch.manual_seed(9)
    assert torch.equal(whole(load(0), "train")[1], first[1])
    assert not torch.equal(whole(load(1), "train")[1], first[1])


@pytest.mark.parametrize("teacher", ["linear", "network"])
def test_clean_targets_have_unit_variance_and_can_be_learned(teacher: Teacher) -> None:
    data = load(teacher=teacher, noise="none", samples=2000)
    inputs, targets = whole(data, "train")
    assert float(targets.std()) == pytest.approx(1.0, abs=0.05)
    design = torch.cat([inputs, torch.ones(len(inputs), 1)], 1)
    fit = design @ torch.linalg.lstsq(design, targets).solution
    unexplained = float((targets - fit).square().mean())
    assert (unexplained < 1e-8) == (teacher == "linear")
    assert unexplained < 0.9


def test_the_product_teacher_is_paper_twos_target() -> None:
    inputs, targets = whole(load(teacher="product", noise="none"), "train")
    torch.testing.assert_close(targets[:, 0], inputs[:, 0] * inputs[:, 1] * inputs[:, 2])


def test_classes_are_the_teachers_largest_outputs() -> None:
    options = {"outputs": 4, "noise": "none"}
    inputs, classes = whole(load(problem="classification", **options), "train")
    same_inputs, values = whole(load(problem="regression", **options), "train")
    assert torch.equal(inputs, same_inputs)
    assert torch.equal(classes, values.argmax(1))


def test_subset_keeps_the_first_samples_and_changes_nothing_else() -> None:
    small, full = load(subset=7), load()
    assert small.sizes == {"train": 7, "validation": 30, "test": 20}
    assert torch.equal(whole(small, "train")[1], whole(full, "train")[1][:7])
    assert torch.equal(whole(small, "test")[1], whole(full, "test")[1])


def test_batches_take_the_asked_rows() -> None:
    data = load()
    batch = data.batch(torch.tensor([4, 4, 0]), generator(0, "augmentation"))
    inputs, targets = whole(data, "train")
    assert torch.equal(batch.inputs, inputs[[4, 4, 0]])
    assert torch.equal(batch.targets, targets[[4, 4, 0]])


def test_a_batch_never_waits_for_the_device() -> None:
    data = load(noise_on="gradients", noise="alpha_stable")
    with FakeTensorMode(allow_non_fake_inputs=True):
        batch = data.batch(torch.arange(5), torch.Generator())
    assert batch.inputs.shape == (5, 5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"problem": "ranking"}, "problem must be one of"),
        ({"teacher": "forest"}, "teacher must be one of"),
        ({"noise": "gauss"}, "noise must be one of"),
        ({"noise_on": "weights"}, "noise_on must be one of"),
        ({"index": 0.0}, "index must be finite and > 0"),
        ({"noise": "none", "index": -1.0}, "index must be finite and > 0"),
        ({"noise": "alpha_stable", "index": 2.5}, "index must be <= 2"),
        ({"scale": -1.0}, "scale must be finite and > 0"),
        ({"samples": 0}, "samples must be >= 1"),
        ({"validation": 0}, "validation must be >= 1"),
        ({"test": 0}, "test must be >= 1"),
        ({"features": 0}, "features must be >= 1"),
        ({"outputs": 0}, "outputs must be >= 1"),
        ({"subset": 61}, "subset must be null or in 1 … 60"),
        ({"problem": "classification"}, "outputs must be >= 2 for classification, got 1"),
        ({"teacher": "product", "features": 2}, "features must be >= 3"),
        ({"teacher": "product", "outputs": 2}, "teacher must be linear or network where outputs > 1"),
        ({"label_smoothing": 0.1}, "label_smoothing must be 0 for regression"),
        ({"problem": "classification", "outputs": 3, "label_smoothing": 1.0}, "label_smoothing must be in"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match="^" + message):
        HeavyTailed(**SMALL | options)
