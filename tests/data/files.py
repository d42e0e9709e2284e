"""Tiny data files in the official formats."""

from __future__ import annotations

import pickle
import tarfile
from pathlib import Path
from typing import Any

import numpy as np


def cifar100_files(root: Path, train: int = 40, test: int = 12, classes: int = 100) -> Path:
    """cifar-100-python/{train,test,meta}; all pixels of image i are i, its class is i mod classes."""
    folder = root / "cifar-100-python"
    folder.mkdir(parents=True)
    for name, size, first in (("train", train, 0), ("test", test, 100)):
        numbers = np.arange(first, first + size)
        content = {
            "filenames": [f"{n}.png" for n in numbers],
            "fine_labels": [int(n) % classes for n in numbers],
            "coarse_labels": [0] * size,
            "data": np.repeat(numbers.astype(np.uint8)[:, None], 3072, axis=1),
        }
        dump(folder / name, content)
    dump(folder / "meta", {"fine_label_names": [str(c) for c in range(classes)]})
    return folder


def cifar10_files(root: Path, each: int = 8) -> Path:
    """cifar-10-batches-py with five training files of `each` images."""
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    for number, name in enumerate([*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]):
        pixels = np.full((each, 3072), number, dtype=np.uint8)
        dump(folder / name, {"labels": [n % 10 for n in range(each)], "data": pixels})
    dump(folder / "batches.meta", {"label_names": [str(c) for c in range(10)]})
    return folder


def archive(root: Path, folder: Path) -> Path:
    """<folder's name>.tar.gz in `root`, and the folder removed."""
    path = root / f"{folder.name}.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        tar.add(folder, folder.name)
    for file in folder.iterdir():
        file.unlink()
    folder.rmdir()
    return path


def dump(path: Path, content: Any) -> None:
    """Protocol 2, as the official files."""
    path.write_bytes(pickle.dumps(content, protocol=2))
