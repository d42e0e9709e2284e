"""Multilayer perceptron.

Initialisation: PyTorch's default for Linear, weights and biases uniform in ±1/√fan_in.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Literal, get_args

from torch import Tensor, nn

from clipbench.config.checks import one_of, require
from clipbench.data.base import Spec
from clipbench.models.fit import require_kind

Activation = Literal["relu", "tanh"]
ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "tanh": nn.Tanh}


class MLP(nn.Module):
    """Linear layers of `widths` with `activation` after each, and a linear `head`.

    widths: of the hidden layers; the default with bias=False is paper 2's MLP (arXiv 2605.11838) on 100 features:
    four linear layers, 100 → 100 → 100 → 100 → 1.
    Images are flattened. Raises ValueError for tokens, an unknown activation, or a width below 1.
    """

    def __init__(
        self,
        spec: Spec,
        widths: Sequence[int] = (100, 100, 100),
        activation: Activation = "relu",
        bias: bool = True,
    ) -> None:
        super().__init__()
        require_kind("mlp", spec, "vector", "image")
        require(all(width >= 1 for width in widths), "widths", "numbers >= 1", list(widths))
        one_of("activation", activation, get_args(Activation))
        sizes = [math.prod(spec.shape), *widths]
        layers: list[nn.Module] = [nn.Flatten()] if len(spec.shape) > 1 else []
        for inside, outside in itertools.pairwise(sizes):
            layers += [nn.Linear(inside, outside, bias=bias), ACTIVATIONS[activation]()]
        self.features = nn.Sequential(*layers)
        self.head = nn.Linear(sizes[-1], spec.outputs, bias=bias)

    def forward(self, inputs: Tensor) -> Tensor:
        """(n, d) or (n, 3, height, width) → (n, outputs)."""
        return self.head(self.features(inputs))  # type: ignore[no-any-return]
