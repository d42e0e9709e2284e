"""A sum of the data that a run really sees, so that results on other files are told apart."""

from __future__ import annotations

import hashlib

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
