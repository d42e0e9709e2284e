"""Crop, flip and normalisation against a Python loop over samples."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from clipbench.data import images as images_module
from clipbench.data.images import Augmentation, ImageData, Images, crops_and_flips
from clipbench.training.seeding import generator

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)


def random_images(n: int, seed: int = 0) -> Images:
    draws = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (n, 3, 32, 32), dtype=torch.uint8, generator=draws)
    return Images(pixels, torch.arange(n) % 10)


def dataset(augment: bool = True, device: str = "cpu") -> ImageData:
    splits = {"train": random_images(40), "validation": random_images(7, 1), "test": random_images(9, 2)}
    moved = {name: part.to(torch.device(device)) for name, part in splits.items()}
    return ImageData(moved, MEAN, STD, Augmentation(padding=4) if augment else None)


def crop_one(image: Tensor, row: int, column: int, flip: bool) -> Tensor:
    """One image (3, 32, 32), padded by hand."""
    canvas = torch.zeros(3, 40, 40, dtype=image.dtype)
    canvas[:, 4:36, 4:36] = image
    cropped = canvas[:, row : row + 32, column : column + 32]
    return cropped.flip(2) if flip else cropped


def expected_batch(indices: Tensor, choices: Tensor) -> Tensor:
    """Cropped, flipped and normalised in float64, sample by sample; choices as in `crops_and_flips`."""
    samples = []
    for index, choice in zip(indices.tolist(), choices.tolist(), strict=True):
        corner, flip = divmod(choice, 2)
        pixels = crop_one(random_images(40).images[index], corner // 9, corner % 9, bool(flip)).double() / 255
        samples.append(torch.stack([(pixels[c] - MEAN[c]) / STD[c] for c in range(3)]))
    return torch.stack(samples)


def compare_with_loop() -> None:
    indices = torch.arange(200) % 40
    batch = dataset().batch(indices, generator(0, "augmentation", 1))
    choices = torch.randint(162, (200,), generator=generator(0, "augmentation", 1))
    torch.testing.assert_close(batch.inputs.double(), expected_batch(indices, choices), atol=1e-5, rtol=0)
    assert batch.targets.tolist() == (indices % 10).tolist()
    assert batch.output_noise is None


def test_a_batch_equals_a_loop() -> None:
    compare_with_loop()


@pytest.mark.parametrize("mistake", ["one view for the whole batch", "no black border", "no flip"])
def test_the_comparison_notices(mistake: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(height: int, width: int, padding: int, border: str) -> Tensor:
        views = crops_and_flips(height, width, padding)
        if mistake == "no black border":
            return views.clamp_max(height * width - 1)
        return views[:1].expand_as(views) if mistake.startswith("one") else views[::2].repeat_interleave(2, 0)

    monkeypatch.setattr(images_module, "crops_and_flips", wrong)
    with pytest.raises(AssertionError):
        compare_with_loop()


@pytest.mark.parametrize(("height", "width", "padding"), [(2, 3, 0), (3, 2, 1), (32, 32, 4)])
def test_views_are_all_crops_in_order(height: int, width: int, padding: int) -> None:
    views, steps = crops_and_flips(height, width, padding), 2 * padding + 1
    image = torch.arange(1, height * width + 1)
    padded = torch.zeros(height + 2 * padding, width + 2 * padding, dtype=torch.int64)
    padded[padding : padding + height, padding : padding + width] = image.view(height, width)
    shown = torch.cat([image, torch.zeros(1, dtype=torch.int64)])[views].view(-1, height, width)
    assert len(views) == 2 * steps**2
    for top in range(steps):
        for left in range(steps):
            crop = padded[top : top + height, left : left + width]
            assert torch.equal(shown[2 * (top * steps + left)], crop)
            assert torch.equal(shown[2 * (top * steps + left) + 1], crop.flip(1))


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
    data = ImageData(splits, (0.0,) * 3, (1.0,) * 3, Augmentation(padding=4))
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


@pytest.mark.parametrize("padding", [1, 2])
def test_a_reflecting_border_is_torch_s(padding: int) -> None:
    image = torch.arange(4 * 5).view(1, 4, 5)
    padded = torch.nn.functional.pad(image.float(), (padding,) * 4, mode="reflect").long()
    side = 2 * padding + 1
    views = crops_and_flips(4, 5, padding, "reflect").view(side, side, 2, 4, 5)
    for top in range(side):
        for left in range(side):
            crop = padded[0, top : top + 4, left : left + 5]
            assert torch.equal(views[top, left, 0], crop)
            assert torch.equal(views[top, left, 1], crop.flip(1))


def test_alternating_flips_turn_round_every_epoch_and_start_by_a_coin() -> None:
    images = random_images(40)
    splits = {"train": images, "validation": images, "test": images}
    data = ImageData(splits, (0.0,) * 3, (1.0,) * 3, Augmentation(0, flip="alternating"))
    rows = torch.arange(40)

    def flipped(epoch: int, seed: int = 7) -> Tensor:
        data.begin_epoch(epoch, generator(seed, "augmentation"))
        seen = (data.batch(rows, generator(0, "augmentation", epoch)).inputs * 255).round()
        straight = images.images.float()
        is_straight = (seen == straight).flatten(1).all(1)
        assert torch.equal(seen[~is_straight], straight[~is_straight].flip(3))
        return ~is_straight

    first = flipped(0)
    assert 8 < int(first.sum()) < 32
    assert torch.equal(flipped(1), ~first)
    assert torch.equal(flipped(2), first)
    assert torch.equal(flipped(0), first), "a run that goes on draws the same coins"
    assert not torch.equal(flipped(0, seed=8), first)


@pytest.mark.parametrize(
    ("augmentation", "message"),
    [
        (Augmentation(-1), "padding must be >= 0, got -1"),
        (Augmentation(2, "white"), "border must be one of black, reflect, got white"),  # type: ignore[arg-type]
        (Augmentation(2, flip="never"), "flip must be one of random, alternating, got never"),  # type: ignore[arg-type]
    ],
)
def test_bad_augmentations(augmentation: Augmentation, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        augmentation.check()
