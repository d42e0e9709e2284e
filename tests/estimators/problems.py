"""The four models on small random batches, with the loss of one sample as a user would write it."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clipbench import models
from clipbench.data.base import Spec
from tests.reference.estimators import Loss


class Problem(NamedTuple):
    """A model, a batch, and the mean loss over samples that are given to it."""

    model: nn.Module
    inputs: Tensor
    targets: Tensor
    loss: Loss

    def losses(self, rows: slice) -> Tensor:
        """Per-sample losses (n,) of some rows, from ONE forward."""
        outputs = self.model(self.inputs[rows])
        return torch.stack([self.loss(o[None], t[None]) for o, t in zip(outputs, self.targets[rows], strict=True)])


def classes(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(outputs, targets)


def tokens(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(outputs.flatten(0, 1), targets.flatten())


def squares(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.mse_loss(outputs, targets)


def problem(name: str, samples: int) -> Problem:
    """The model `name` with its batch, drawn from fixed seeds; dropout is off (evaluation mode)."""
    torch.manual_seed(1)
    if name == "transformer":
        spec = Spec("tokens", (12,), 31, "text")
        model: nn.Module = models.Transformer(spec, layers=2, heads=2, width=16)
        return Problem(model.eval(), torch.randint(31, (samples, 12)), torch.randint(31, (samples, 12)), tokens)
    if name == "mlp":
        model = models.MLP(Spec("vector", (9,), 2, "vectors"), widths=[17, 13])
        return Problem(model.eval(), torch.randn(samples, 9), torch.randn(samples, 2), squares)
    build = {"alexnet": models.AlexNet, "alexnet_fc": models.AlexNetFC}[name]
    model = build(Spec("image", (3, 32, 32), 100, "images"))
    return Problem(model.eval(), torch.randn(samples, 3, 32, 32), torch.randint(100, (samples,)), classes)
