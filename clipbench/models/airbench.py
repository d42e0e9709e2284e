"""The network of airbench94 (K. Jordan 2024, arXiv 2404.00498) for CIFAR-10, as paper 2 trains it.

A frozen whitening convolution, three groups of convolutions with batch normalisation, and a linear head. Written
from the description in the two papers.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clipbench.config.checks import at_least, require
from clipbench.data.base import Data, Spec
from clipbench.models.fit import require_shape

PATCH = 2  # pixels: side of the whitening filters
WHITENING_IMAGES = 5000  # training images whose patches are whitened
WHITENING_EPS = 5e-4  # added to the patches' eigenvalues
NORM_EPS = 1e-12
NORM_MOMENTUM = 0.4  # PyTorch's word for a running average that keeps 0.6


class Group(nn.Module):
    """conv 3 × 3 → max-pool 2 × 2 → norm → GELU → conv 3 × 3 → norm → GELU, no biases but the norms'."""

    def __init__(self, inside: int, outside: int) -> None:
        super().__init__()
        self.first = _partial_identity(nn.Conv2d(inside, outside, 3, padding=1, bias=False))
        self.pool = nn.MaxPool2d(2)
        self.first_norm = _norm(outside)
        self.second = _partial_identity(nn.Conv2d(outside, outside, 3, padding=1, bias=False))
        self.second_norm = _norm(outside)
        self.activation = nn.GELU()

    def forward(self, images: Tensor) -> Tensor:
        """(n, inside, h, w) → (n, outside, h // 2, w // 2)."""
        hidden = self.activation(self.first_norm(self.pool(self.first(images))))
        return self.activation(self.second_norm(self.second(hidden)))  # type: ignore[no-any-return]


class Airbench(nn.Module):
    """airbench94's network: whitening, three groups of `widths` channels, linear head, logits over the head's inputs.

    The whitening filters, 24 for three channels, are the eigenvectors of the patches of 5000 training images, each
    over the square root of its eigenvalue, and their negatives; `prepare` sets them, and they stay frozen (their bias
    trains). Convolutions start as partial identities, norms have no trained scale, the head has unit spread.

    widths: channels of the groups; 64, 256, 256 in the paper.
    averaged_views: in evaluation mode the logits are the mean over flips and two shifts of one pixel
    (test-time augmentation: half the image and its mirror, half those of the two shifted images).
    Raises ValueError unless the dataset has images of 3 × 32 × 32, or where a width is below 1.
    """

    def __init__(self, spec: Spec, widths: Sequence[int] = (64, 256, 256), averaged_views: bool = True) -> None:
        super().__init__()
        require_shape("airbench", spec, (3, 32, 32))
        require(len(widths) == 3, "widths", "three numbers", list(widths))
        for width in widths:
            at_least("widths", width, 1)
        whitened = 2 * spec.shape[0] * PATCH**2
        self.whitening = nn.Conv2d(spec.shape[0], whitened, PATCH)
        self.whitening.weight.requires_grad_(False)
        nn.init.zeros_(self.whitening.bias)  # type: ignore[arg-type]  # it has one
        self.activation = nn.GELU()
        sizes = [whitened, *widths]
        self.groups = nn.ModuleList(Group(inside, outside) for inside, outside in zip(sizes, widths, strict=False))
        self.pool = nn.MaxPool2d(3)
        self.head = nn.Linear(widths[-1], spec.outputs, bias=False)
        with torch.no_grad():
            self.head.weight /= self.head.weight.std()
        self.averaged_views = averaged_views

    def prepare(self, data: Data) -> None:
        """Set the whitening filters from the first training images of `data`, not augmented."""
        images = next(data.evaluation("train", WHITENING_IMAGES)).inputs
        with torch.no_grad():
            self.whitening.weight.copy_(whitening_filters(images, WHITENING_EPS))

    def forward(self, images: Tensor) -> Tensor:
        """(n, 3, 32, 32) → (n, classes)."""
        if self.training or not self.averaged_views:
            return self._logits(images)
        padded = F.pad(images, (1, 1, 1, 1), mode="reflect")
        shifted = (padded[:, :, :-2, :-2], padded[:, :, 2:, 2:])
        return (self._mirrored(images) + (self._mirrored(shifted[0]) + self._mirrored(shifted[1])) / 2) / 2

    def _mirrored(self, images: Tensor) -> Tensor:
        return (self._logits(images) + self._logits(images.flip(-1))) / 2

    def _logits(self, images: Tensor) -> Tensor:
        hidden = self.activation(self.whitening(images))
        for group in self.groups:
            hidden = group(hidden)
        features = self.pool(hidden).flatten(1)
        return self.head(features) / features.shape[1]  # type: ignore[no-any-return]


def whitening_filters(images: Tensor, eps: float) -> Tensor:
    """Filters (2d, channels, 2, 2), d = channels · 4, that whiten the 2 × 2 patches of `images` (n, channels, h, w).

    Row i is the i-th eigenvector of the patches' second moments over √(eigenvalue + eps), largest eigenvalue first;
    row d + i its negative.
    """
    channels = images.shape[1]
    patches = F.unfold(images, PATCH).transpose(1, 2).reshape(-1, channels * PATCH**2).double()
    values, vectors = torch.linalg.eigh(patches.T @ patches / len(patches))
    filters = (vectors / (values + eps).sqrt()).T.flip(0).reshape(-1, channels, PATCH, PATCH)
    return torch.cat([filters, -filters]).to(images.dtype)


def _norm(width: int) -> nn.BatchNorm2d:
    norm = nn.BatchNorm2d(width, eps=NORM_EPS, momentum=NORM_MOMENTUM)
    norm.weight.requires_grad_(False)
    return norm


def _partial_identity(convolution: nn.Conv2d) -> nn.Conv2d:
    """The first filters pass one channel each through; the others keep PyTorch's default."""
    nn.init.dirac_(convolution.weight.data[: convolution.in_channels])
    return convolution
