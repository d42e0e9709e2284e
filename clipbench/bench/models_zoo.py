"""Models that others wrote, at small size and with random weights: what `clipbench.bench models` measures on.

Nothing is downloaded. Dropout and stochastic depth are off, so that a step can be compared with autograd.
Normalisation over the batch has no per-sample gradients: such layers are GroupNorm where the model's own constructor
takes a norm (`note` "GroupNorm"), and otherwise stay as in evaluation, with fixed statistics ("BatchNorm frozen").
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from functools import cache
from importlib import import_module
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from clipbench.bench.problems import Problem

CLASSES = 10
VOCABULARY = 500
RANDOM = ("p", "dropout", "attention_dropout", "activation_dropout", "dropout_prob", "drop_prob", "attn_dropout",
          "hidden_dropout", "layerdrop", "dropout_p", "drop_rate")  # fmt: skip
"""Attributes of modules that are probabilities of leaving something out."""

Draw = Callable[[int, torch.Generator], Tensor]


class Entry(NamedTuple):
    """One model: `inputs` and `targets` draw n samples, `losses` (outputs, targets) → (n,)."""

    family: str
    title: str
    make: Callable[[], nn.Module]
    inputs: Draw
    targets: Draw
    losses: Callable[[Tensor, Tensor], Tensor]
    note: str = ""


class Output(nn.Module):
    """A model of which one named output is taken, so that it maps a tensor to a tensor."""

    def __init__(
        self, model: nn.Module, field: str = "logits", call: Callable[[nn.Module, Tensor], object] | None = None
    ):
        super().__init__()
        self.model = model
        self.field = field
        self.call = call

    def forward(self, x: Tensor) -> Tensor:
        """(n, …) → the model's output."""
        out = self.model(x) if self.call is None else self.call(self.model, x)
        return out if isinstance(out, Tensor) else getattr(out, self.field)


def images(size: int, channels: int = 3) -> Draw:
    """n random images."""
    return lambda n, draws: torch.randn(n, channels, size, size, generator=draws)


def classes(count: int = CLASSES) -> Draw:
    """n random classes."""
    return lambda n, draws: torch.randint(count, (n,), generator=draws)


def tokens(length: int, first: int = 0, count: int = VOCABULARY) -> Draw:
    """n random sequences of token numbers from `first` on."""
    return lambda n, draws: torch.randint(first, count, (n, length), generator=draws)


ROOMS = ("models_torchvision", "models_timm", "models_text", "models_own")
"""Modules that hold ENTRIES; a child process imports only as many as it needs."""


@cache
def entries(room: str) -> dict[str, Entry]:
    """The models of one module by name. ImportError where its library is missing (the extra `models`)."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    with warnings.catch_warnings(action="ignore"):
        return dict(import_module(f"clipbench.bench.{room}").ENTRIES)


def zoo() -> dict[str, Entry]:
    """All models by name."""
    return {name: entry for room in ROOMS for name, entry in entries(room).items()}


def zoo_problem(name: str, batch: int) -> Problem:
    """The model called `name` in training mode and a batch for it: the same weights and data at every call."""
    entry = next(entries(room)[name] for room in ROOMS if name in entries(room))
    draws = torch.Generator().manual_seed(0)
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings(action="ignore"):
        torch.manual_seed(0)
        model = entry.make()
    model.train()
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.eval()
        for attribute in RANDOM:
            if isinstance(getattr(module, attribute, None), float):
                setattr(module, attribute, 0.0)
    return Problem(model, entry.inputs(batch, draws), entry.targets(batch, draws), entry.losses)
