"""Image data on the device: uint8 tensors, cropped, flipped and normalised as batched tensor operations."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from clipbench.data.base import Batch, slices


class Images(NamedTuple):
    """images: (n, 3, height, width) uint8.  labels: (n,) int64."""

    images: Tensor
    labels: Tensor

    def take(self, indices: Tensor) -> Images:
        return Images(self.images[indices], self.labels[indices])

    def to(self, device: torch.device) -> Images:
        return Images(self.images.to(device), self.labels.to(device))


def crop_and_flip(images: Tensor, offsets: Tensor, flips: Tensor, padding: int) -> Tensor:
    """Crop image k of the zero-padded batch at `offsets[:, k]` and mirror it where `flips[k]`.

    images: (n, channels, height, width).  offsets: (2, n) int64, rows then columns, in [0, 2·padding].
    flips: (n,) bool.  Returns the shape of `images`. One gather does both, whatever the offsets.
    """
    n, channels, height, width = images.shape
    padded = F.pad(images, (padding,) * 4).flatten(2)
    rows = torch.arange(height, device=images.device)
    columns = torch.arange(width, device=images.device)
    rows = rows + offsets[0].view(n, 1)
    columns = torch.where(flips.view(n, 1), columns.flip(0), columns) + offsets[1].view(n, 1)
    pixels = rows.unsqueeze(2) * (width + 2 * padding) + columns.unsqueeze(1)
    return padded.gather(2, pixels.view(n, 1, -1).expand(-1, channels, -1)).view_as(images)


class ImageData:
    """Images on the device (see clipbench.data.base.Data).

    mean, std: per channel, on the scale 0 … 1.  augment: random crop after zero padding by `padding` pixels,
    one offset per SAMPLE, and a horizontal flip with probability 1/2; padding and flip come before
    normalisation, so the border is black as in torchvision's RandomCrop.
    """

    def __init__(
        self,
        splits: dict[str, Images],
        mean: Sequence[float],
        std: Sequence[float],
        augment: bool,
        padding: int,
    ) -> None:
        self._splits = splits
        self.sizes: dict[str, int] = {name: len(part.labels) for name, part in splits.items()}
        self._augment = augment
        self._padding = padding
        device = splits["train"].images.device
        centre = torch.tensor(mean, device=device).view(1, -1, 1, 1)
        spread = torch.tensor(std, device=device).view(1, -1, 1, 1)
        self._factor = 1 / (255 * spread)
        self._shift = -centre / spread

    def batch(self, indices: Tensor, generator: torch.Generator) -> Batch:
        train = self._splits["train"]
        images = train.images.index_select(0, indices)
        if self._augment:
            shape, device = indices.shape, indices.device
            steps = 2 * self._padding + 1
            offsets = torch.randint(steps, (2, *shape), generator=generator, device=device)
            flips = torch.rand(shape, generator=generator, device=device) < 0.5
            images = crop_and_flip(images, offsets, flips, self._padding)
        return Batch(self._normalise(images), train.labels.index_select(0, indices))

    def evaluation(self, split: str, batch_size: int) -> Iterator[Batch]:
        part = self._splits[split]
        for rows in slices(len(part.labels), batch_size):
            yield Batch(self._normalise(part.images[rows]), part.labels[rows])

    def _normalise(self, images: Tensor) -> Tensor:
        return torch.addcmul(self._shift, images.float(), self._factor)
