"""What the grid's cases are made of: a model and a call that gives its losses, for any number of samples."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

Losses = Callable[[], Tensor]
Case = Callable[[int], tuple[nn.Module, Losses]]
"""n → (model in float64, a call that gives losses (n,) with a fresh graph)."""

STEPS = 6  # positions of a sequence; no batch of the grid has as many samples
SIZES = (2, 3, 4, 5, 9)


def bowl(out: Tensor, axis: int = 0) -> Tensor:
    """A loss of each sample, (n,), whose gradient vanishes nowhere in particular; samples lie along `axis`."""
    rows = out.movedim(axis, 0).flatten(1)
    if rows.is_complex():
        rows = torch.cat([rows.real, rows.imag], 1)
    return 0.5 * rows.square().sum(1) + rows.sum(1)


def layer(make: Callable[[], nn.Module], *shape: int, axis: int = 0) -> Case:
    """A layer on random numbers whose shape is `shape` with the samples put in at `axis`."""

    def case(n: int) -> tuple[nn.Module, Losses]:
        model = make().double()
        x = torch.randn(*shape[:axis], n, *shape[axis:], dtype=torch.float64)
        return model, lambda: bowl(model(x), axis)

    return case


def indexed(make: Callable[[], nn.Module], rows: int, *shape: int, axis: int = 0) -> Case:
    """A layer on random indices below `rows`."""

    def case(n: int) -> tuple[nn.Module, Losses]:
        model = make().double()
        x = torch.randint(rows, (*shape[:axis], n, *shape[axis:]))
        return model, lambda: bowl(model(x), axis)

    return case


class Params(nn.Module):
    """Bare parameters, and a function of them and the input."""

    def __init__(self, function: Callable[..., Tensor], *shapes: tuple[int, ...], dtype: torch.dtype | None = None):
        super().__init__()
        self.function = function
        self.values = nn.ParameterList([nn.Parameter(torch.randn(shape, dtype=dtype)) for shape in shapes])

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, *self.values)


def bare(function: Callable[..., Tensor], parameters: list[tuple[int, ...]], *shape: int, axis: int = 0) -> Case:
    """function(x, *parameters) of random numbers."""
    return layer(lambda: Params(function, *parameters), *shape, axis=axis)


def stack(*layers: nn.Module) -> nn.Sequential:
    """nn.Sequential."""
    return nn.Sequential(*layers)


def lengths(n: int) -> Tensor:
    """A length of 1 … STEPS for every sample, no two neighbours alike."""
    return torch.tensor([1 + (5 * k + 2) % STEPS for k in range(n)])


Pick = Callable[[Tensor], Tensor]


def head(kind: str, steps: Tensor, time: int) -> Tensor:
    """A readout over the time axis of (n, t, d) or (t, n, d): what a classifier on top would see, samples first."""
    out = steps.movedim(time, 1)
    n = out.shape[0]
    kinds: dict[str, Callable[[], Tensor]] = {
        "all": lambda: out,
        "last": lambda: steps.select(time, -1),
        "first": lambda: steps.select(time, 0),
        "middle": lambda: steps.select(time, STEPS // 2),
        "mean": lambda: steps.mean(time),
        "masked mean": lambda: _masked_mean(out, lengths(n)),
        "own last": lambda: out[torch.arange(n), lengths(n) - 1],
        "max": lambda: steps.amax(time),
    }
    return kinds[kind]()


HEADS = ("all", "last", "first", "middle", "mean", "masked mean", "own last", "max")


def _masked_mean(out: Tensor, sizes: Tensor) -> Tensor:
    mask = torch.arange(out.shape[1]) < sizes[:, None]
    return (out * mask[..., None]).sum(1) / sizes[:, None]


def options(**chosen: Any) -> str:
    """Options in words."""
    return ", ".join(f"{key} {value}" if value is not True else key.replace("_", " ") for key, value in chosen.items())
