"""A sum of the data that a run really sees, so that results on other files are told apart."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from clipbench.config import schema
from clipbench.config.build import instantiate
from clipbench.data.base import Data, Dataset

SPLITS = ("train", "validation", "test")
BATCH = 1000  # samples hashed at a time


def data_sum(dataset: Dataset, data: Data) -> str | None:
    """16 hexadecimal digits of all inputs and targets as loaded, split by split, without augmentation.

    None for generated data: the options say what they are, and rounding differs between machines.
    """
    if dataset.provenance.get("generated"):
        return None
    digest = hashlib.blake2b(digest_size=8)
    for split in SPLITS:
        digest.update(f"{split} {data.sizes[split]}".encode())
        for batch in data.evaluation(split, BATCH):
            for tensor in (batch.inputs, batch.targets):
                digest.update(tensor.contiguous().cpu().numpy().tobytes())
    return digest.hexdigest()


def sum_of(config: Mapping[str, Any], options: schema.Options) -> str | None:
    """The sum of the data that a config names, for an id: only where its files are not verified otherwise."""
    if options.data.verify or "dataset" not in config:
        return None
    where = options.data.model_dump() | {"split_seed": options.data_seed}  # null means the run's own seed
    return _loaded_sum(json.dumps(config["dataset"], sort_keys=True), json.dumps(where, sort_keys=True))


@functools.cache
def _loaded_sum(node: str, where: str) -> str | None:
    """Kept for the process: a sweep asks once for each dataset."""
    dataset: Dataset = instantiate(json.loads(node), "dataset")
    place = json.loads(where)
    root = Path(place["root"]).expanduser()
    data = dataset.load(torch.device("cpu"), root, place["split_seed"], place["verify"], place["download"])
    return data_sum(dataset, data)
