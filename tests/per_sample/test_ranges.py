"""Gradients of any size: per-sample norms from 1e-30 to 1e30 in float32, and positions that cancel."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from clipbench.per_sample import NormalizedWeight, PerSampleClipper, total
from tests.per_sample.constructs import CONSTRUCTS
from tests.per_sample.common import square_loss
from tests.per_sample.grid import FAMILIES
from tests.per_sample.grid.base import Case
from tests.per_sample.zoo import CASES
from tests.reference.from_graph import flat_gradient_of, sample_gradients_of

ALL = {f"{family}-{name}": case for family, cases in FAMILIES.items() for name, case in cases.items()}


class Single(TorchFunctionMode):
    """The grid's cases, which are written for float64, in float32."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if kwargs.get("dtype") is torch.float64:
            kwargs["dtype"] = torch.float32
        if kwargs.get("dtype") is torch.complex128:
            kwargs["dtype"] = torch.complex64
        return (Tensor.float if func is Tensor.double else func)(*args, **kwargs)


def scales(n: int, low: float = -30.0, high: float = 30.0) -> Tensor:
    """A factor for each sample, 10**low … 10**high."""
    return 10.0 ** (torch.rand(n) * (high - low) + low)


def off(model: nn.Module, losses: Tensor, factors: Tensor, scale: float = 1.0, **options: Any) -> tuple[float, float]:
    """Relative errors, sample by sample: of norms, and of Σ_k g_k/‖g_k‖, in which all samples count alike.

    The twin differentiates every loss alone, without its factor, which it multiplies in float64.
    """
    rows = sample_gradients_of(losses, model)
    size = rows.norm(dim=1)
    wanted = size * factors.double()
    clear = size > 1e-3 * size.max()  # else what is left is rounding, of which there is no truth
    clipper = PerSampleClipper(model, 1.0, NormalizedWeight(), **options)
    model.zero_grad()
    stats = clipper.backward(losses * factors * scale, scale=scale)
    assert stats.dropped == 0
    off_norms = ((stats.norms.double() - wanted).abs() / wanted.clamp(min=1e-40))[clear]
    units = rows / size.clamp(min=1e-40)[:, None]
    summed = torch.where(clear[:, None], units, 0.0).mean(0)
    if not bool(clear.all()):
        return float(off_norms.max()), 0.0
    return float(off_norms.max()), float((flat_gradient_of(model) / scale - summed).norm())
