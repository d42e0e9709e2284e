"""A small problem on which a method is tried out: regression with heavy-tailed noise, a network of two layers."""

from __future__ import annotations

import copy
import io
import json
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from clipbench.cli.compose import compose
from clipbench.config import schema
from clipbench.contract.parts import nodes
from clipbench.data.base import Data
from clipbench.training import setup
from clipbench.training.trainer import Trainer

STEPS = 8
WARMUP = 2  # calls, for rules that first look on for a while
# Powers of two, so that means over samples and over micro-batches round alike.
PROBLEM = (
    "dataset=heavy_tailed", "dataset.samples=128", "dataset.validation=16", "dataset.test=16", "dataset.features=16",
    "model=mlp", "model.widths=[16,16]", "batch_size=4", "accumulation=4", f"steps={STEPS}", "optimizer=sgd",
    "optimizer.lr=0.004", "device=cpu", "tuned=none",
)  # fmt: skip


class Trained(NamedTuple):
    """What a few steps left: the weights by name, and each step's figures by name."""

    weights: dict[str, Tensor]
    figures: list[dict[str, Tensor]]

    def shares(self) -> list[float]:
        """What each step reports as clipped: of layers, samples, micro-batches, whatever the method counts."""
        return [float(value) for step in self.figures for name, value in step.items() if "clipped_fraction" in name]

    def same_weights(self, other: Trained) -> bool:
        """Whether all weights are equal to the last bit."""
        return self.weights.keys() == other.weights.keys() and all(
            torch.equal(value, other.weights[name]) for name, value in self.weights.items()
        )

    def same(self, other: Trained) -> bool:
        """Whether the weights and all figures of all steps are equal to the last bit."""
        return self.same_weights(other) and all(
            one.keys() == two.keys() and all(_equal(one[name], two[name]) for name in one)
            for one, two in zip(self.figures, other.figures, strict=True)
        )


def _equal(one: Tensor, two: Tensor) -> bool:
    """To the last bit; not a number equals itself."""
    return torch.allclose(one.double(), two.double(), rtol=0, atol=0, equal_nan=True)


class Bench:
    """Trains methods on one problem; the same weights and batches for all of them."""

    def __init__(self, overrides: tuple[str, ...] = PROBLEM) -> None:
        self.config = compose(overrides)
        self.options = schema.check(self.config)
        self._data: Data | None = None
        self._trained: dict[str, Trained] = {}

    @property
    def sgd(self) -> Trained:
        """Plain SGD on it."""
        return self.train(self.config["method"])

    def trainer(self, method: Mapping[str, Any]) -> Trainer:
        """A trainer at its first step. Raises ConfigError for a method that cannot be built."""
        made = setup.build({**self.config, "method": hurried(method)}, self.options, self._data)
        self._data = made.data
        made.model.train()
        return Trainer(made)

    def train(self, method: Mapping[str, Any]) -> Trained:
        """All steps, without a break; a config that was trained before is not trained again."""
        key = json.dumps({name: node for name, node in method.items() if name not in ("name", "tuning")})
        if key not in self._trained:
            trainer = self.trainer(method)
            self._trained[key] = _left(trainer, [trainer.step(step) for step in range(STEPS)])
        return self._trained[key]

    def train_in_parts(self, method: Mapping[str, Any]) -> Trained:
        """The same steps, every one of them by a fresh trainer that loads what the one before it saved."""
        trainer, figures = self.trainer(method), []
        for step in range(STEPS):
            figures.append(trainer.step(step))
            buffer = io.BytesIO()
            torch.save(trainer.state_dict(), buffer)
            buffer.seek(0)
            trainer = self.trainer(method)
            trainer.load_state_dict(torch.load(buffer, weights_only=True))
        return _left(trainer, figures)


def _left(trainer: Trainer, figures: list[dict[str, Tensor]]) -> Trained:
    weights = {name: parameter.detach().clone() for name, parameter in trainer.named}
    return Trained(weights, figures)


def hurried(method: Mapping[str, Any]) -> dict[str, Any]:
    """The method with `warmup` options of a few steps only: a rule that still looks on shows nothing of itself."""
    found = copy.deepcopy(dict(method))
    for _, node in nodes(found):
        if isinstance(node.get("warmup"), int) and isinstance(node, dict):
            node["warmup"] = min(node["warmup"], WARMUP)
    return found
