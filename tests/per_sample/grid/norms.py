"""Normalisations, and weights that are themselves functions of parameters (weight, spectral and other norms)."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

from tests.per_sample.grid.base import STEPS, Case, layer, options, stack


def _layers() -> dict[str, Case]:
    cases: dict[str, Case] = {}
    for shape, size in (((4,), 1), ((STEPS, 4), 1), ((STEPS, 4), 2), ((2, 3, 4), 1), ((2, 3, 4), 2), ((2, 3, 4), 3)):
        for bias in (True, False):
            name = f"LayerNorm over {size} of {1 + len(shape)} axes, {options(bias=bias)}"
            cases[name] = layer(
                lambda shape=shape[-size:], bias=bias: stack(nn.LayerNorm(shape, bias=bias), nn.Linear(4, 3)), *shape
            )
        cases[f"RMSNorm over {size} of {1 + len(shape)} axes"] = layer(
            lambda shape=shape[-size:]: stack(nn.RMSNorm(shape), nn.Linear(4, 3)), *shape
        )
    cases["LayerNorm, no parameters"] = layer(
        lambda: stack(nn.LayerNorm(4, elementwise_affine=False), nn.Linear(4, 3)), STEPS, 4
    )
    cases["LayerNorm, time first"] = layer(lambda: stack(nn.LayerNorm(4), nn.Linear(4, 3)), STEPS, 4, axis=1)
    cases["RMSNorm, time first"] = layer(lambda: stack(nn.RMSNorm(4), nn.Linear(4, 3)), STEPS, 4, axis=1)
    spaces: list[tuple[int, ...]] = [(), (STEPS,), (3, 2), (2, 3, 2)]
    for space in spaces:
        for groups in (1, 2, 4):
            if groups == 4 and not space:
                continue  # one number a group: its output is the bias
            cases[f"GroupNorm({groups}) on {2 + len(space)} axes"] = layer(
                lambda groups=groups: nn.GroupNorm(groups, 4), 4, *space
            )
    cases["GroupNorm, no parameters"] = layer(
        lambda: stack(nn.Conv2d(4, 4, 1), nn.GroupNorm(2, 4, affine=False)), 4, 3, 2
    )
    for dims, kind in enumerate((nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d), 1):
        space = (3, 4, 2)[:dims]
        cases[f"{kind.__name__}"] = layer(lambda kind=kind: kind(4, affine=True), 4, *space)
        cases[f"{kind.__name__}, running"] = layer(
            lambda kind=kind: kind(4, affine=True, track_running_stats=True).eval(), 4, *space
        )
    for dims, norm in enumerate((nn.BatchNorm1d, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)):
        cases[f"{norm.__name__} in evaluation on {2 + dims} axes"] = layer(
            lambda norm=norm: norm(4).eval(), 4, *(3, 4, 2)[:dims]
        )
    return cases


class Standardised(nn.Conv2d):
    """A convolution with a standardised weight, as in BiT, or scaled, as in NF-ResNets."""

    def forward(self, x: Tensor) -> Tensor:
        flat = self.weight.flatten(1)
        weight = F.batch_norm(flat[None], None, None, training=True).view_as(self.weight)
        return F.conv2d(x, weight, self.bias, padding=1)


class Gemma(nn.Module):
    """Root mean square norm by 1 + w."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4) * 0.1)

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, (4,), eps=1e-6) * (1.0 + self.weight)


class Symmetric(nn.Module):
    """A parametrization by hand."""

    def forward(self, x: Tensor) -> Tensor:
        return x.triu() + x.triu(1).transpose(-1, -2)


def _old(norm: Callable[..., nn.Module], make: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        with warnings.catch_warnings(action="ignore", category=FutureWarning):
            return norm(make())

    return build


def _parametrized() -> dict[str, Case]:
    p = parametrizations
    linear, conv = (lambda: nn.Linear(4, 3)), (lambda: nn.Conv2d(4, 6, 3))
    table: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
        "weight_norm(Linear)": (lambda: stack(p.weight_norm(linear()), nn.Tanh(), nn.Linear(3, 2)), (4,)),
        "weight_norm(Linear) on steps": (lambda: p.weight_norm(linear()), (STEPS, 4)),
        "weight_norm(Linear, dim None)": (lambda: p.weight_norm(linear(), dim=None), (STEPS, 4)),
        "weight_norm(Conv2d)": (lambda: p.weight_norm(conv()), (4, 5, 5)),
        "weight_norm(Conv1d, dim 2)": (lambda: p.weight_norm(nn.Conv1d(4, 4, 3, groups=2), dim=2), (4, 7)),
        "weight_norm, the old": (_old(nn.utils.weight_norm, linear), (STEPS, 4)),
        "spectral_norm(Linear)": (lambda: p.spectral_norm(linear()).eval(), (STEPS, 4)),
        "spectral_norm(Conv2d)": (lambda: p.spectral_norm(conv()).eval(), (4, 5, 5)),
        "spectral_norm, the old": (_old(lambda m: nn.utils.spectral_norm(m).eval(), linear), (STEPS, 4)),
        "orthogonal(Linear)": (lambda: p.orthogonal(nn.Linear(4, 4)), (STEPS, 4)),
        "orthogonal, Householder": (lambda: p.orthogonal(linear(), orthogonal_map="householder"), (STEPS, 4)),
        "a parametrization by hand": (lambda: _by_hand(), (STEPS, 4)),
        "standardised weight": (lambda: stack(Standardised(4, 6, 3), nn.ReLU(True), nn.Conv2d(6, 2, 3)), (4, 6, 6)),
        "1 + w": (lambda: stack(Gemma(), nn.Linear(4, 3)), (STEPS, 4)),
        "1 + w on vectors": (lambda: stack(Gemma(), nn.Linear(4, 3)), (4,)),
    }
    cases = {name: layer(make, *shape) for name, (make, shape) in table.items()}
    cases["weight_norm, time first"] = layer(table["weight_norm(Linear) on steps"][0], STEPS, 4, axis=1)
    cases["1 + w, time first"] = layer(table["1 + w"][0], STEPS, 4, axis=1)
    return cases


def _by_hand() -> nn.Module:
    model = nn.Linear(4, 4)
    parametrize.register_parametrization(model, "weight", Symmetric())
    return model


CASES: dict[str, Case] = _layers() | _parametrized()
