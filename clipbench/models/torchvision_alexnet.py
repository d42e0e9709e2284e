"""Torchvision's own AlexNet (Krizhevsky 2014, arXiv 1404.5997), on images enlarged to its own size."""

from __future__ import annotations

from torch import nn

from clipbench.checks import at_least, fraction
from clipbench.data.base import Spec
from clipbench.models.fit import require_kind

SMALLEST = 63  # pixels: below, its last pool has nothing left


def torchvision_alexnet(spec: Spec, size: int = 224, dropout: float = 0.5) -> nn.Sequential:
    """Resize to size × size, then an untrained torchvision.models.alexnet (57 M parameters, 100 classes).

    ReLUs are made not to work in place, since per-sample hooks read the outputs of the layers before them.
    Initialisation: torchvision's, that is PyTorch's default, uniform in ±1/√fan_in.
    Raises ValueError unless the dataset has images, where size is below 63, or dropout not in [0, 1).
    """
    require_kind("torchvision_alexnet", spec, "image")
    at_least("size", size, SMALLEST)
    fraction("dropout", dropout)
    from torchvision.models import alexnet  # takes a second or two, which other models should not wait for

    model = alexnet(num_classes=spec.outputs, dropout=dropout)
    for module in model.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = False
    resize = nn.Upsample(size=(size, size), mode="bilinear")
    return nn.Sequential(resize, model)
