"""From a checked config to the objects of one run: data, model, method, optimizer, schedule, noise."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import nn

from clipbench.clipping import Clipper
from clipbench.config import schema
from clipbench.config.build import instantiate
from clipbench.config.device import pick_device
from clipbench.data.base import Data, Dataset
from clipbench.data.double import DoubleData
from clipbench.errors import ConfigError
from clipbench.estimators import Estimator
from clipbench.training.noise import Noise
from clipbench.training.seeding import seed_global


class Schedule(Protocol):
    """The factor on every learning rate at a step, counted from 0, of a run of `steps` steps."""

    def factor(self, step: int, steps: int) -> float: ...


@runtime_checkable
class Prepared(Protocol):
    """A model part of which is set from the data before training (whitening filters)."""

    def prepare(self, data: Data) -> None: ...


@dataclass
class Setup:
    """One run's objects; nothing of them has been written anywhere."""

    options: schema.Options
    device: torch.device
    dataset: Dataset
    data: Data
    model: nn.Module
    estimator: Estimator
    clipper: Clipper
    optimizer: torch.optim.Optimizer
    schedule: Schedule
    noise: Noise | None
    steps: int
    update: Clipper | None = None

    @property
    def samples_per_step(self) -> int:
        """Samples in one optimizer step, over all its micro-batches."""
        return self.options.batch_size * self.options.accumulation

    def parameters(self) -> list[tuple[str, nn.Parameter]]:
        """The trained parameters with their names."""
        return [(name, p) for name, p in self.model.named_parameters() if p.requires_grad]


def set_numerics(options: schema.Options) -> None:
    """Process-wide switches of torch: precision of matrix products, determinism, threads."""
    # Per-backend switches, not float32_matmul_precision: on some CPUs that one would lower the precision too.
    torch.backends.cuda.matmul.allow_tf32 = options.precision == "tf32"
    torch.backends.cudnn.allow_tf32 = options.precision == "tf32"
    torch.use_deterministic_algorithms(options.deterministic)
    if options.threads is not None:
        torch.set_num_threads(options.threads)


def build_study(config: Mapping[str, Any], options: schema.Options, device: torch.device) -> Any:
    """The study of a config; it gets of `setup` (a network's objects), `options`, `seed` and `device` what it names."""
    given = {"options": options, "seed": options.seed, "device": device}
    set_numerics(options)
    if "model" in config:
        given["setup"] = build(config, options)
    return instantiate(config["study"], "study", **given)


def build(config: Mapping[str, Any], options: schema.Options, data: Data | None = None) -> Setup:
    """Load the data and build everything else; ConfigError for what does not fit, before anything is written.

    `data` stands in for the dataset's files where a benchmark or a test brings its own.
    """
    device = pick_device(options.device)
    set_numerics(options)
    seed_global(options.seed, "initialisation")
    dataset = instantiate(config["dataset"], "dataset")  # which draws nothing until it is loaded
    model = instantiate(config["model"], "model", spec=dataset.spec)
    if options.precision == "fp64":
        model.double()  # the float32 draws, widened
    if device.type != "cpu":
        model.to(device)  # drawn on the CPU, so that all devices start from the same weights
    method = config["method"]
    estimator = instantiate(method["estimator"], "method.estimator", model=model)
    clipper = instantiate(method["clipper"], "method.clipper", model=model)
    update = instantiate(method["update"], "method.update", model=model) if "update" in method else None
    optimizer = instantiate(config["optimizer"], "optimizer", model=model)
    schedule = instantiate(config["schedule"], "schedule")
    noise = instantiate(config["noise"], "noise", model=model) if "_target_" in config["noise"] else None
    if options.compile:
        if estimator.eager:
            name = type(estimator).__name__
            raise ConfigError(
                f"compile must be false with {name}, which reads the autograd graph of an eager model, got true"
            )
        model.compile()
    if data is None:
        where = options.data
        root = Path(where.root).expanduser()
        data = dataset.load(device, root, options.data_seed, where.verify, where.download)
    if options.precision == "fp64" and not isinstance(data, DoubleData):
        data = DoubleData(data)
    samples = options.batch_size * options.accumulation
    if samples > data.sizes["train"]:
        raise ConfigError(
            f"batch_size must be <= {data.sizes['train'] // options.accumulation} (batch_size × accumulation within "
            f"the {data.sizes['train']} training samples of {dataset.spec.name}), got {options.batch_size}"
        )
    if isinstance(model, Prepared):
        model.prepare(data)
    steps = options.steps or max(1, math.ceil((options.epochs or 0) * (data.sizes["train"] // samples)))
    return Setup(options, device, dataset, data, model, estimator, clipper, optimizer, schedule, noise, steps, update)
