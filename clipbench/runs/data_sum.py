"""The sum of the data that a config names, as far as an id needs it."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from clipbench.config import schema
from clipbench.config.build import instantiate
from clipbench.data.base import Dataset
from clipbench.data.sums import data_sum


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
