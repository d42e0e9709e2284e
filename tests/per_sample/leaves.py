"""Parameters without a layer around them, and data for them, in float64."""

from __future__ import annotations

import torch
from torch import Tensor, nn

WIDTH = 4
N = 5


def randn(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def parameters(*shapes: tuple[int, ...]) -> nn.ParameterList:
    torch.manual_seed(0)
    return nn.ParameterList([nn.Parameter(randn(*shape)) for shape in shapes])
