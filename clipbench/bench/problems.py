"""What the engines are timed on: a model, one batch of random data, and one loss per sample."""

from __future__ import annotations

import re
from collections.abc import Callable
from importlib import import_module
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clipbench.data.base import Spec
from clipbench.models import MLP, AlexNet, AlexNetFC, Transformer

CLASSES = 100  # as CIFAR-100
CHARACTERS = 65  # as tiny Shakespeare
LAYERS, WIDTH, HEADS = 4, 128, 4  # of the transformer
PREFIX = "zoo:"
"""What a problem's name starts with where it is one of the models that others wrote."""
NAMES = "alexnet, alexnet_fc, mlp_<width> or transformer_<context>"


class Problem(NamedTuple):
    """A model in training mode, a batch of n samples, and `losses` (outputs, targets) → (n,)."""

    model: nn.Module
    inputs: Tensor
    targets: Tensor
    losses: Callable[[Tensor, Tensor], Tensor]


def problem(name: str, batch: int, dropout: bool = True) -> Problem:
    """The problem called `name`, the same weights and data at every call; ValueError for an unknown name.

    mlp_<width> is paper 2's network (arXiv 2605.14928), inputs and four hidden layers of `width`, no bias, squared
    error. transformer_<context> has 4 layers, width 128, 4 heads, and biases, since Opacus cannot do a LayerNorm
    without one. dropout=False switches dropout off. zoo:<name> is one of `models_zoo`.
    """
    if name.startswith(PREFIX):
        return import_module("clipbench.bench.models_zoo").zoo_problem(name.removeprefix(PREFIX), batch)
    kind, size = parse(name)
    draws = torch.Generator().manual_seed(0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = _model(kind, size)
    model.train()
    for module in model.modules():
        for attribute in () if dropout else ("p", "dropout"):  # of nn.Dropout, and of the attention weights
            if isinstance(getattr(module, attribute, None), float):
                setattr(module, attribute, 0.0)
    if kind == "mlp":
        inputs, targets = torch.randn(batch, size, generator=draws), torch.randn(batch, 1, generator=draws)
        return Problem(model, inputs, targets, squared_error)
    if kind == "transformer":
        text = torch.randint(CHARACTERS, (batch, size + 1), generator=draws)
        return Problem(model, text[:, :-1].contiguous(), text[:, 1:].contiguous(), token_entropy)
    images = torch.randn(batch, 3, 32, 32, generator=draws)
    return Problem(model, images, torch.randint(CLASSES, (batch,), generator=draws), cross_entropy)


def parse(name: str) -> tuple[str, int]:
    """(kind, size) of a problem's name; the size of an AlexNet is 0."""
    found = re.fullmatch(r"(alexnet|alexnet_fc)|(mlp|transformer)_([1-9]\d*)", name)
    if found is None:
        raise ValueError(f"models must be {NAMES}, got {name}")
    return (found[1], 0) if found[1] else (found[2], int(found[3]))


def _model(kind: str, size: int) -> nn.Module:
    if kind == "mlp":
        return MLP(Spec("vector", (size,), 1, "random vectors"), widths=[size] * 4, bias=False)
    if kind == "transformer":
        spec = Spec("tokens", (size,), CHARACTERS, "random text")
        return Transformer(spec, layers=LAYERS, heads=HEADS, width=WIDTH, bias=True, tied_head=False)
    return (AlexNet if kind == "alexnet" else AlexNetFC)(Spec("image", (3, 32, 32), CLASSES, "random images"))


def cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    """(n, classes), (n,) → (n,)."""
    return F.cross_entropy(outputs, targets, reduction="none")


def token_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Mean over a sample's tokens: (n, context, characters), (n, context) → (n,)."""
    return F.cross_entropy(outputs.transpose(1, 2), targets, reduction="none").mean(1)


def squared_error(outputs: Tensor, targets: Tensor) -> Tensor:
    """(n, 1), (n, 1) → (n,)."""
    return (outputs - targets).square().mean(1)
