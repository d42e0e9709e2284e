"""Whole training steps under spectral clipping, and real gradients for the kernels, from short training runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from clipbench.bench.overhead import random_images
from clipbench.bench.spectral_cases import PAPER
from clipbench.cli.compose import compose
from clipbench.clipping import Clipper, EmaThreshold, QuantileThreshold, SpectralClip
from clipbench.config import schema
from clipbench.config.device import pick_device
from clipbench.data.base import DataUnavailable
from clipbench.data.images import ImageData
from clipbench.spectral import SpectralReport, as_matrix
from clipbench.timing.interleaved import interleave, ratio
from clipbench.training.setup import Setup, build

OVERRIDES = {
    "alexnet": ["dataset=cifar100", "model=alexnet", "batch_size=128", "optimizer=sgd", "optimizer.lr=0.05"],
    "transformer": [
        *["dataset=shakespeare_char", "dataset.context=128", "batch_size=32", "optimizer=sgd", "optimizer.lr=0.1"],
        *["model.layers=4", "model.heads=4", "model.width=128", "model.dropout=0.0"],
    ],
    # For gradients of GPT-2's shapes; not timed as a whole.
    "gpt2": [
        *["dataset=shakespeare_char", "dataset.context=64", "batch_size=8", "optimizer=sgd", "optimizer.lr=0.1"],
        *["model.layers=1", "model.heads=12", "model.width=768", "model.dropout=0.0"],
    ],
}


class Training(NamedTuple):
    """A prepared run; `source` says what it trains on."""

    setup: Setup
    source: str

    def losses(self) -> Callable[[], Tensor]:
        """A function that makes the next batch and gives its mean loss."""
        data, setup = self.setup.data, self.setup
        order = torch.randperm(data.sizes["train"], generator=torch.Generator().manual_seed(0)).to(setup.device)
        draws, width, place = torch.Generator(setup.device).manual_seed(0), setup.options.batch_size, 0

        def loss() -> Tensor:
            nonlocal place
            batch = data.batch(order[place : place + width], draws)
            place = place + width if place + 2 * width <= len(order) else 0
            return setup.dataset.task.losses(setup.model(batch.inputs), batch).mean()

        return loss


def training(name: str, root: str | None, files: bool = True) -> Training | None:
    """The run called `name`; None for text that is missing. AlexNet takes random images where CIFAR-100 is missing.

    root: folder of the datasets (None: the config's). files=False looks for none.
    """
    overrides = [*OVERRIDES[name], "steps=1000000", *([f"data.root={root}"] if root else [])]
    config = compose(overrides)
    options = schema.check(config)
    try:
        if files:
            return Training(build(config, options), config["dataset"]["name"])
    except DataUnavailable:
        pass
    if name != "alexnet":
        return None
    images: ImageData = random_images(pick_device(options.device))
    return Training(build(config, options, images), "random images")


def train(run: Training, steps: int, keep: int = 0) -> dict[str, list[Tensor]]:
    """Train with plain SGD; the matrix gradients of the last `keep` steps, by parameter."""
    loss, setup = run.losses(), run.setup
    kept: dict[str, list[Tensor]] = {}
    setup.model.train()
    for step in range(steps):
        setup.optimizer.zero_grad()
        loss().backward()
        if step >= steps - keep:
            for name, parameter in setup.parameters():
                if parameter.grad is not None and parameter.grad.ndim > 1:
                    kept.setdefault(name, []).append(as_matrix(parameter.grad).clone())
        setup.optimizer.step()
    return kept


class LapackClip(SpectralClip):
    """The same clipper with torch.linalg.svd in float32 for every layer."""

    def clip_matrices(self, names: list[str], matrices: list[Tensor], tau: Tensor, lengths: Tensor) -> SpectralReport:
        sigma = []
        for matrix, level in zip(matrices, tau, strict=True):
            left, values, right = torch.linalg.svd(matrix, full_matrices=False)
            matrix.copy_((left * values.clamp_max(level)) @ right)
            sigma.append(values[0])
        top = torch.stack(sigma)
        nothing = torch.zeros_like(top, dtype=torch.bool)
        return SpectralReport(top, (top > tau).to(torch.int64), nothing, nothing)


class LowRankClip(SpectralClip):
    """The same clipper with torch.svd_lowrank and the paper's setting."""

    def clip_matrices(self, names: list[str], matrices: list[Tensor], tau: Tensor, lengths: Tensor) -> SpectralReport:
        sigma = []
        rank, oversample, iterations = PAPER
        for matrix, level in zip(matrices, tau, strict=True):
            left, values, right = torch.svd_lowrank(matrix, min(rank + oversample, *matrix.shape), iterations)
            left, values, right = left[:, :rank], values[:rank], right[:, :rank]
            matrix.add_((left * (values.clamp_max(level) - values)) @ right.mT)
            sigma.append(values[0])
        top = torch.stack(sigma)
        nothing = torch.zeros_like(top, dtype=torch.bool)
        return SpectralReport(top, (top > tau).to(torch.int64), nothing, nothing)


def clippers(setup: Setup) -> dict[str, Clipper | None]:
    """What is compared, plain SGD first."""
    model = setup.model
    return {
        "sgd": None,
        "auto, EMA": SpectralClip.for_model(model, EmaThreshold(0.9)),
        "auto, quantile": SpectralClip.for_model(model, QuantileThreshold(0.85, 100)),
        "randomized, EMA": SpectralClip.for_model(model, EmaThreshold(0.9), backend="randomized"),
        "svd_lowrank (10, 5, 1), EMA": LowRankClip.for_model(model, EmaThreshold(0.9)),
        "full SVD, EMA": LapackClip.for_model(model, EmaThreshold(0.9)),
    }


def measure(run: Training, rounds: int, settle: int) -> list[dict[str, object]]:
    """Seconds of the whole step of each clipper, interleaved on one model; `settle` steps fill the thresholds first."""
    setup, loss = run.setup, run.losses()

    def step(clipper: Clipper | None) -> Callable[[], None]:
        def run_step() -> None:
            setup.optimizer.zero_grad()
            loss().backward()
            if clipper is not None:
                clipper(setup.parameters())
            setup.optimizer.step()

        return run_step

    steps = {name: step(clipper) for name, clipper in clippers(setup).items()}
    seconds = interleave(steps, rounds, warmup=settle, device=setup.device)
    rows = []
    for name, column in seconds.items():
        found = ratio(column, seconds["sgd"])
        rows.append({"method": name, "seconds": sorted(column)[len(column) // 2], **found._asdict()})
    return rows
