"""Torchvision's own AlexNet (Krizhevsky 2014, arXiv 1404.5997), on images enlarged to its own size."""

from __future__ import annotations

from torch import Tensor, nn

from clipbench.config.checks import at_least, fraction
from clipbench.data.base import Spec
from clipbench.models.fit import require_kind

SMALLEST = 63  # pixels: below, its last pool has nothing left


class TorchvisionAlexNet(nn.Module):
    """Bilinear resize to size × size, then torchvision.models.alexnet, untrained (57 M parameters).

    Its last layer is split off as `head`, and its ReLUs do not work in place, since per-sample hooks read the
    outputs of the layers before them. Initialisation: torchvision's, that is PyTorch's default, ±1/√fan_in.
    Raises ValueError unless the dataset has images, where size is below 63, or dropout not in [0, 1).
    """

    def __init__(self, spec: Spec, size: int = 224, dropout: float = 0.5) -> None:
        super().__init__()
        require_kind("torchvision_alexnet", spec, "image")
        at_least("size", size, SMALLEST)
        fraction("dropout", dropout)
        from torchvision.models import (
            alexnet,
        )  # takes a second or two, which other models should not wait for

        original = alexnet(num_classes=spec.outputs, dropout=dropout)
        for module in original.modules():
            if isinstance(module, nn.ReLU):
                module.inplace = False
        resize = nn.Upsample(size=(size, size), mode="bilinear")
        self.features = nn.Sequential(resize, *original.features, original.avgpool, nn.Flatten())
        self.hidden = original.classifier[:-1]
        self.head = original.classifier[-1]

    def forward(self, images: Tensor) -> Tensor:
        """(n, 3, height, width) → (n, classes)."""
        return self.head(self.hidden(self.features(images)))  # type: ignore[no-any-return]
