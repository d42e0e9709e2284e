"""Convolutions in one to three dimensions, over kernel, stride, padding and its modes, dilation, groups, transposed."""

from __future__ import annotations

from typing import Any

from torch import nn

from tests.per_sample.grid.base import Case, layer, options, stack

PLAIN = [nn.Conv1d, nn.Conv2d, nn.Conv3d]
TRANSPOSED = [nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d]
SPACE = (7, 6, 5)
FORWARD: list[dict[str, Any]] = [
    {"kernel_size": 1},
    {"kernel_size": 1, "stride": 2},
    {"kernel_size": 1, "bias": False},
    {"kernel_size": 1, "groups": 2},
    {"kernel_size": 2},
    {"kernel_size": 3},
    {"kernel_size": 3, "bias": False},
    {"kernel_size": 3, "stride": 2},
    {"kernel_size": 3, "padding": 1},
    {"kernel_size": 3, "padding": 2, "stride": 3},
    {"kernel_size": 3, "padding": "same"},
    {"kernel_size": 2, "padding": "same"},
    {"kernel_size": 3, "padding": "same", "dilation": 2},
    {"kernel_size": 3, "padding": "valid"},
    {"kernel_size": 3, "padding": "valid", "stride": 2},
    {"kernel_size": 2, "padding": "valid", "groups": 2, "bias": False},
    {"kernel_size": 2, "dilation": 2},
    {"kernel_size": 2, "dilation": 3, "padding": 2},
    {"kernel_size": 3, "groups": 2},
    {"kernel_size": 3, "groups": 4, "padding": 1},
    {"kernel_size": 3, "groups": 4, "padding": "same", "bias": False},
    {"kernel_size": 3, "groups": 2, "stride": 2, "padding": 2, "dilation": 2},
    {"kernel_size": 3, "padding": 1, "padding_mode": "circular"},
    {"kernel_size": 3, "padding": 1, "padding_mode": "reflect"},
    {"kernel_size": 3, "padding": 2, "padding_mode": "replicate", "stride": 2},
    {"kernel_size": 3, "padding": "same", "padding_mode": "circular", "groups": 2},
    {"kernel_size": 5, "padding": 4},
]
BACKWARD: list[dict[str, Any]] = [
    {"kernel_size": 1},
    {"kernel_size": 3},
    {"kernel_size": 3, "bias": False, "groups": 2},
    {"kernel_size": 3, "stride": 2},
    {"kernel_size": 3, "stride": 2, "padding": 1, "output_padding": 1},
    {"kernel_size": 2, "dilation": 2, "padding": 1},
    {"kernel_size": 3, "groups": 4},
    {"kernel_size": 2, "stride": 2, "groups": 2},
]


def _cases() -> dict[str, Case]:
    cases: dict[str, Case] = {}
    for kinds, grid in ((PLAIN, FORWARD), (TRANSPOSED, BACKWARD)):
        for dims, kind in enumerate(kinds, 1):
            for chosen in grid:
                if dims == 3 and chosen.get("padding_mode") == "reflect" and chosen["kernel_size"] > 3:
                    continue
                name = f"{kind.__name__}, {options(**chosen)}"
                cases[name] = layer(lambda kind=kind, chosen=chosen: kind(4, 8, **chosen), 4, *SPACE[:dims])
    return cases


def _per_axis() -> dict[str, Case]:
    """Options that differ from axis to axis."""
    return {
        "Conv2d, per axis": layer(lambda: nn.Conv2d(4, 6, (3, 1), (1, 2), (0, 1), (2, 1)), 4, 7, 6),
        "Conv2d, circular on one axis": layer(
            lambda: nn.Conv2d(4, 6, (1, 3), padding=(0, 1), padding_mode="circular"), 4, 7, 6
        ),
        "Conv3d, per axis": layer(lambda: nn.Conv3d(2, 3, (1, 2, 3), (2, 1, 1), (0, 1, 2), (1, 2, 1)), 2, 5, 5, 4),
        "Conv2d, even kernel, same": layer(lambda: nn.Conv2d(4, 6, (2, 4), padding="same"), 4, 7, 6),
        "Conv2d on one pixel": layer(lambda: nn.Conv2d(4, 6, 3, padding=1), 4, 1, 1),
        "Conv2d twice": layer(lambda: stack(nn.Conv2d(4, 6, 3), nn.ReLU(True), nn.Conv2d(6, 4, 3, 2)), 4, 7, 7),
        "Conv1d after Linear": layer(lambda: stack(nn.Linear(5, 6), nn.Tanh(), nn.Conv1d(4, 3, 3)), 4, 5),
        "Conv2d, Flatten, Linear": layer(
            lambda: stack(nn.Conv2d(4, 6, 3), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(24, 3)), 4, 6, 6
        ),
        "Conv2d, depth multiplier": layer(lambda: nn.Conv2d(4, 12, 3, groups=4), 4, 5, 5),
    }


CASES: dict[str, Case] = _cases() | _per_axis()
