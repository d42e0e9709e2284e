"""AlexNet (Krizhevsky, Sutskever, Hinton 2012) for 32 × 32 images, with a short or the original head.

The eight layers of the original, with smaller strides and pools: an 11 × 11 convolution of stride 4 leaves 8
× 8 positions of a 32 × 32 image, and three 2 × 2 pools leave one. The original's local response normalisation
is left out.

Initialisation: PyTorch's default for Linear and Conv2d, weights and biases uniform in ±1/√fan_in (LeCun et
al., Efficient BackProp, 1998, section 4.6, with a smaller variance: 1/(3·fan_in)).
"""

from __future__ import annotations

from torch import Tensor, nn

from clipbench.config.checks import at_least, fraction
from clipbench.data.base import Spec
from clipbench.models.fit import require_shape


def _features() -> nn.Sequential:
    """Five convolutions, (n, 3, 32, 32) → (n, 256).

    ReLUs are not in place, unlike torchvision's: the results are the same.
    """
    return nn.Sequential(
        nn.Conv2d(3, 64, kernel_size=11, stride=4, padding=5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(64, 192, kernel_size=5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(192, 384, kernel_size=3, padding=1),
        nn.ReLU(),
        nn.Conv2d(384, 256, kernel_size=3, padding=1),
        nn.ReLU(),
        nn.Conv2d(256, 256, kernel_size=3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
    )


class AlexNet(nn.Module):
    """Five convolutions and one linear layer: 2.5 million parameters with 100 classes.

    Raises ValueError unless the dataset has images of 3 × 32 × 32.
    """

    def __init__(self, spec: Spec) -> None:
        super().__init__()
        require_shape("alexnet", spec, (3, 32, 32))
        self.features = _features()
        self.head = nn.Linear(256, spec.outputs)

    def forward(self, images: Tensor) -> Tensor:
        """(n, 3, 32, 32) → (n, classes)."""
        return self.head(self.features(images))  # type: ignore[no-any-return]


class AlexNetFC(nn.Module):
    """AlexNet with the original's three fully connected layers, dropout before the first two (section 4.2).

    width: of the two hidden layers (4096 in the original).  dropout: probability of dropping a unit (0.5).
    Raises ValueError unless the dataset has images of 3 × 32 × 32, or where width or dropout is out of range.
    """

    def __init__(self, spec: Spec, width: int = 4096, dropout: float = 0.5) -> None:
        super().__init__()
        require_shape("alexnet_fc", spec, (3, 32, 32))
        at_least("width", width, 1)
        fraction("dropout", dropout)
        self.features = _features()
        self.hidden = nn.Sequential(
            nn.Dropout(dropout),
            nn.Linear(256, width),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(width, width),
            nn.ReLU(),
        )
        self.head = nn.Linear(width, spec.outputs)

    def forward(self, images: Tensor) -> Tensor:
        """(n, 3, 32, 32) → (n, classes)."""
        return self.head(self.hidden(self.features(images)))  # type: ignore[no-any-return]
