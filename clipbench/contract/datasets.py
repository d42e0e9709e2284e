"""What an outside dataset must keep: a spec, splits that repeat, batches that are functions of their generator."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from clipbench.config.build import instantiate
from clipbench.contract.promises import Finding
from clipbench.data.base import Batch, Data, Dataset
from clipbench.wording import amount

SAMPLES = 4


def examine_dataset(name: str, root: Path, options: Mapping[str, Any]) -> list[Finding]:
    """Findings for a dataset class, loaded from `root`. Raises ConfigError where it cannot be built or loaded.

    >>> small = {"samples": 40, "validation": 10, "test": 10}
    >>> found = examine_dataset("clipbench.data.HeavyTailed", Path("data"), small)
    >>> [each.held for each in found]
    [True, True, True, True]
    """
    dataset: Dataset = instantiate({"_target_": name, **options}, "dataset")
    data = dataset.load(torch.device("cpu"), root, 0)
    again = instantiate({"_target_": name, **options}, "dataset").load(torch.device("cpu"), root, 0)
    return [_shape(dataset, data), _repeats(data, again), _splits(data), _task(dataset, data)]


def _batch(data: Data, seed: int = 0) -> Batch:
    return data.batch(torch.arange(SAMPLES), torch.Generator().manual_seed(seed))


def _shape(dataset: Dataset, data: Data) -> Finding:
    found, wanted = tuple(_batch(data).inputs.shape), (SAMPLES, *dataset.spec.shape)
    return Finding("shape", found == wanted, f"a batch's inputs must be of shape {wanted}, got {found}")


def _repeats(data: Data, again: Data) -> Finding:
    one, two = _batch(data), _batch(again)
    same = torch.equal(one.inputs, two.inputs) and torch.equal(one.targets, two.targets)
    why = "the same indices and generator give " + ("the same batch" if same else "another batch in a second loading")
    return Finding("repeats", same, why)


def _splits(data: Data) -> Finding:
    for split in ("validation", "test"):
        counts = [sum(len(batch.inputs) for batch in data.evaluation(split, size)) for size in (SAMPLES, 7)]
        if counts != [data.sizes[split]] * 2:
            return Finding(
                "splits", False, f"{split} has {amount(data.sizes[split], 'sample')}, its evaluation gave {counts}"
            )
    return Finding("splits", True, "an evaluation gives every sample of a split once")


def _task(dataset: Dataset, data: Data) -> Finding:
    batch, spec = _batch(data), dataset.spec
    shape = (SAMPLES, *spec.shape, spec.outputs) if spec.kind == "tokens" else (SAMPLES, spec.outputs)
    outputs = torch.zeros(shape, requires_grad=True)
    values: dict[str, Tensor] = {
        "losses": dataset.task.losses(outputs, batch), **dataset.task.metrics(outputs, batch)
    }  # fmt: skip
    for name, value in values.items():
        if value.shape != (SAMPLES,) or not bool(torch.isfinite(value).all()):
            return Finding("task", False, f"{name} must be ({SAMPLES},) finite values, got {tuple(value.shape)}")
    if "loss" not in values:
        return Finding("task", False, "metrics must hold loss")
    return Finding("task", True, "a finite loss and finite metrics for every sample")
