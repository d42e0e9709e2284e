"""Crop, flip and normalisation against a Python loop over samples."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from clipbench.data import images as images_module
from clipbench.data.images import ImageData, Images, crop_and_flip
from clipbench.seeding import generator

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)


def random_images(n: int, seed: int = 0) -> Images:
    draws = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (n, 3, 32, 32), dtype=torch.uint8, generator=draws)
    return Images(pixels, torch.arange(n) % 10)


def dataset(augment: bool = True, device: str = "cpu") -> ImageData:
    splits = {"train": random_images(40), "validation": random_images(7, 1), "test": random_images(9, 2)}
    moved = {name: part.to(torch.device(device)) for name, part in splits.items()}
    return ImageData(moved, MEAN, STD, augment, padding=4)


def crop_one(image: Tensor, row: int, column: int, flip: bool) -> Tensor:
    """One image (3, 32, 32), padded by hand."""
    canvas = torch.zeros(3, 40, 40, dtype=image.dtype)
    canvas[:, 4:36, 4:36] = image
    cropped = canvas[:, row : row + 32, column : column + 32]
    return cropped.flip(2) if flip else cropped


def compare_with_loop() -> None:
    images = random_images(12).images
    draws = torch.Generator().manual_seed(3)
    offsets = torch.randint(9, (2, 12), generator=draws)
    flips = torch.rand(12, generator=draws) < 0.5
    expected = [
        crop_one(images[k], int(offsets[0, k]), int(offsets[1, k]), bool(flips[k])) for k in range(12)
    ]
    assert torch.equal(images_module.crop_and_flip(images, offsets, flips, 4), torch.stack(expected))


def test_crop_and_flip_equal_a_loop() -> None:
    compare_with_loop()


def test_the_comparison_notices_one_offset_for_the_whole_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    def same_for_all(images: Tensor, offsets: Tensor, flips: Tensor, padding: int) -> Tensor:
        return crop_and_flip(images, offsets[:, :1].expand_as(offsets), flips, padding)

    monkeypatch.setattr(images_module, "crop_and_flip", same_for_all)
    with pytest.raises(AssertionError):
        compare_with_loop()


def test_batch_is_the_normalised_crop_of_the_asked_samples() -> None:
    data, indices = dataset(), torch.tensor([5, 5, 0, 39])
    batch = data.batch(indices, generator(0, "augmentation", 1))
    draws = generator(0, "augmentation", 1)
    offsets = torch.randint(9, (2, 4), generator=draws)
    flips = torch.rand(4, generator=draws) < 0.5
    images = random_images(40)
    for k, index in enumerate(indices.tolist()):
        pixels = crop_one(images.images[index], int(offsets[0, k]), int(offsets[1, k]), bool(flips[k]))
        for channel in range(3):
            expected = (pixels[channel].double() / 255 - MEAN[channel]) / STD[channel]
            torch.testing.assert_close(batch.inputs[k, channel].double(), expected, atol=1e-5, rtol=0)
    assert batch.targets.tolist() == images.labels[indices].tolist()
    assert batch.output_noise is None


def test_augmentation_depends_on_the_generator_alone() -> None:
    data, indices = dataset(), torch.arange(20)
    torch.manual_seed(0)
    first = data.batch(indices, generator(0, "augmentation", 4)).inputs
    torch.manual_seed(1)
    assert torch.equal(first, data.batch(indices, generator(0, "augmentation", 4)).inputs)
    assert not torch.equal(first, data.batch(indices, generator(0, "augmentation", 5)).inputs)


def test_every_offset_and_both_orientations_occur() -> None:
    marker = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
    marker[0, :, 16, 10] = 255
    splits = {"train": Images(marker, torch.zeros(1, dtype=torch.int64))}
    data = ImageData(splits, (0.0,) * 3, (1.0,) * 3, True, 4)
    shown = data.batch(torch.zeros(4000, dtype=torch.int64), generator(0, "augmentation")).inputs[:, 0]
    places = {(int(p) // 32, int(p) % 32) for p in shown.flatten(1).argmax(1)}
    rows, columns = range(12, 21), (*range(6, 15), *range(17, 26))
    assert places == {(row, column) for row in rows for column in columns}


def test_without_augmentation_nothing_is_drawn_or_moved() -> None:
    data, draws = dataset(augment=False), generator(0, "augmentation")
    state = draws.get_state()
    inputs = data.batch(torch.arange(9), draws).inputs
    assert torch.equal(draws.get_state(), state)
    assert torch.equal(inputs, next(data.evaluation("train", 9)).inputs)


@pytest.mark.parametrize("batch_size", [1, 4, 9, 100])
def test_evaluation_shows_every_sample_once_in_order(batch_size: int) -> None:
    batches = list(dataset().evaluation("test", batch_size))
    whole = next(dataset().evaluation("test", 9))
    assert torch.equal(torch.cat([batch.inputs for batch in batches]), whole.inputs)
    assert torch.equal(torch.cat([batch.targets for batch in batches]), random_images(9, 2).labels)
    assert all(len(batch.targets) == batch_size for batch in batches[:-1])


def test_a_batch_never_waits_for_the_device() -> None:
    with FakeTensorMode(allow_non_fake_inputs=True):
        batch = dataset().batch(torch.randperm(40)[:16], torch.Generator())
    assert batch.inputs.shape == (16, 3, 32, 32)
