"""Image data on the device: uint8 tensors, cropped, flipped and normalised as batched tensor operations."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from clipbench.config.checks import at_least, one_of
from clipbench.data.base import Batch, slices

Border = Literal["black", "reflect"]
Flip = Literal["random", "alternating"]


class Images(NamedTuple):
    """images: (n, 3, height, width) uint8.  labels: (n,) int64."""

    images: Tensor
    labels: Tensor

    def take(self, indices: Tensor) -> Images:
        return Images(self.images[indices], self.labels[indices])

    def to(self, device: torch.device) -> Images:
        return Images(self.images.to(device), self.labels.to(device))


class Augmentation(NamedTuple):
    """How a training image is changed: a crop after padding, one offset per SAMPLE, and a horizontal flip.

    padding: pixels on each side.  border: what they show, black as in torchvision's RandomCrop, or the image mirrored
    at its edge (which is not repeated).  flip: random, with probability 1/2 at every visit, or alternating: a coin
    for each image in the first epoch, the other way round in every next one (K. Jordan 2024, arXiv 2404.00498, 3.6).
    """

    padding: int
    border: Border = "black"
    flip: Flip = "random"

    def check(self) -> None:
        """Raise ValueError where an option is out of range."""
        at_least("padding", self.padding, 0)
        one_of("border", self.border, ("black", "reflect"))
        one_of("flip", self.flip, ("random", "alternating"))


def crops_and_flips(height: int, width: int, padding: int, border: Border = "black") -> Tensor:
    """Every view of a padded image, as places in its flattened pixels, (2·(2·padding + 1)², height·width).

    Row (top·(2·padding + 1) + left)·2 + flip is the crop at (top, left) of the padded image, mirrored if flip is
    1. Black places outside the image are height·width, where `ImageData` keeps a black pixel.
    """
    offsets = torch.arange(-padding, padding + 1)
    rows = offsets.view(-1, 1, 1, 1, 1) + torch.arange(height).view(-1, 1)
    columns = torch.arange(width)
    columns = offsets.view(-1, 1, 1, 1) + torch.stack([columns, columns.flip(0)]).unsqueeze(1)
    if border == "reflect":
        rows, columns = _reflected(rows, height), _reflected(columns, width)
    inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    return torch.where(inside, rows * width + columns, height * width).flatten(3).flatten(0, 2)


def _reflected(places: Tensor, size: int) -> Tensor:
    """Places within `size` − 1 of either edge, mirrored into 0 … size − 1."""
    return size - 1 - (size - 1 - places.abs()).abs()


class ImageData:
    """Images on the device (see clipbench.data.base.Data).

    mean, std: per channel, on the scale 0 … 1.  augmentation: of the training images, None for none; it comes before
    normalisation.
    """

    def __init__(
        self,
        splits: dict[str, Images],
        mean: Sequence[float],
        std: Sequence[float],
        augmentation: Augmentation | None,
    ) -> None:
        self.sizes: dict[str, int] = {name: len(part.labels) for name, part in splits.items()}
        self._labels = {name: part.labels for name, part in splits.items()}
        # (n, 3, height·width + 1): the black pixel at the end saves every batch the padding.
        self._pixels = {name: F.pad(part.images.flatten(2), (0, 1)) for name, part in splits.items()}
        _, *self._shape = splits["train"].images.shape
        device = splits["train"].images.device
        self._views = None
        if augmentation is not None:
            views = crops_and_flips(self._shape[1], self._shape[2], augmentation.padding, augmentation.border)
            self._views = views.to(device)
        self._alternating = augmentation is not None and augmentation.flip == "alternating"
        self._flips = torch.zeros(self.sizes["train"], dtype=torch.int64, device=device)  # of the epoch under way
        centre = torch.tensor(mean, device=device).view(1, -1, 1)
        spread = torch.tensor(std, device=device).view(1, -1, 1)
        self._factor = 1 / (255 * spread)
        self._shift = -centre / spread

    def begin_epoch(self, epoch: int, generator: torch.Generator) -> None:
        """Turn alternating flips round; `generator` is the run's, the same in every epoch, on the CPU."""
        if self._alternating:
            first = torch.randint(2, self._flips.shape, generator=generator)
            self._flips = ((first + epoch) % 2).to(self._flips.device)

    def batch(self, indices: Tensor, generator: torch.Generator) -> Batch:
        pixels = self._pixels["train"].index_select(0, indices)
        labels = self._labels["train"].index_select(0, indices)
        if self._views is None:
            return Batch(self._normalise(pixels[:, :, :-1]), labels)
        choice = torch.randint(len(self._views), indices.shape, generator=generator, device=indices.device)
        if self._alternating:
            choice = choice // 2 * 2 + self._flips.index_select(0, indices)
        places = self._views.index_select(0, choice).unsqueeze(1).expand(-1, pixels.shape[1], -1)
        return Batch(self._normalise(pixels.gather(2, places)), labels)

    def evaluation(self, split: str, batch_size: int) -> Iterator[Batch]:
        pixels, labels = self._pixels[split], self._labels[split]
        for rows in slices(len(labels), batch_size):
            yield Batch(self._normalise(pixels[rows, :, :-1]), labels[rows])

    def _normalise(self, pixels: Tensor) -> Tensor:
        """uint8 (n, channels, height·width) → float32 (n, channels, height, width)."""
        return pixels.float().mul_(self._factor).add_(self._shift).reshape(-1, *self._shape)
