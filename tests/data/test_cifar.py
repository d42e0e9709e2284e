"""CIFAR from tiny files in the official format; the real files where CLIPBENCH_DATA points to them (slow)."""

from __future__ import annotations

import os
import pickle
import socket
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from clipbench.data import Cifar10, Cifar100, DataUnavailable
from clipbench.data import cifar as cifar_module
from clipbench.data.images import ImageData
from clipbench.training.seeding import generator
from tests.data.files import archive, cifar10_files, cifar100_files, dump

CPU = torch.device("cpu")


def load(root: Path, split_seed: int = 0, **options: Any) -> ImageData:
    dataset = Cifar100(**{"validation": 10, "augment": False, **options})
    return dataset.load(CPU, root, split_seed, verify=False, download=False)


def numbers(data: ImageData, split: str) -> list[int]:
    """The numbers of a split's images, which are their pixels before normalisation."""
    inputs = torch.cat([batch.inputs for batch in data.evaluation(split, 7)])
    red = inputs[:, 0, 0, 0] * Cifar100.std[0] + Cifar100.mean[0]
    return [round(value) for value in (red * 255).tolist()]


def test_constructing_reads_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "open", None)
    monkeypatch.setattr(cifar_module, "fetch", None)
    assert Cifar100().spec == ("image", (3, 32, 32), 100, "cifar100")
    assert Cifar10().spec == ("image", (3, 32, 32), 10, "cifar10")


def test_splits_share_no_image_and_lose_none(tmp_path: Path) -> None:
    cifar100_files(tmp_path)
    data = load(tmp_path)
    assert data.sizes == {"train": 30, "validation": 10, "test": 12}
    assert sorted(numbers(data, "train") + numbers(data, "validation")) == list(range(40))
    assert numbers(data, "test") == list(range(100, 112))


def test_labels_stay_with_their_images(tmp_path: Path) -> None:
    cifar100_files(tmp_path)
    data = load(tmp_path)
    labels = torch.cat([batch.targets for batch in data.evaluation("train", 7)])
    assert labels.tolist() == numbers(data, "train")
    batch = data.batch(torch.tensor([3, 1]), generator(0, "augmentation"))
    assert batch.targets.tolist() == [numbers(data, "train")[3], numbers(data, "train")[1]]


def test_the_split_follows_its_seed_alone(tmp_path: Path) -> None:
    cifar100_files(tmp_path)
    first = numbers(load(tmp_path, 0), "validation")
    torch.manual_seed(5)
    assert numbers(load(tmp_path, 0), "validation") == first
    assert numbers(load(tmp_path, 1), "validation") != first


def test_a_subset_keeps_some_of_the_training_images(tmp_path: Path) -> None:
    cifar100_files(tmp_path)
    data, whole = load(tmp_path, subset=6), load(tmp_path)
    assert data.sizes == {"train": 6, "validation": 10, "test": 12}
    assert numbers(data, "train") == numbers(whole, "train")[:6]
    assert numbers(data, "validation") == numbers(whole, "validation")


def test_cifar10_has_five_files(tmp_path: Path) -> None:
    cifar10_files(tmp_path)
    dataset = Cifar10(validation=10)
    data = dataset.load(CPU, tmp_path, 0, verify=False)
    assert data.sizes == {"train": 30, "validation": 10, "test": 8}
    assert len(dataset.provenance["files"]) == 7
    assert dataset.provenance["verified"] is False


def test_an_archive_is_unpacked(tmp_path: Path) -> None:
    archive(tmp_path, cifar100_files(tmp_path))
    assert load(tmp_path).sizes["train"] == 30
    assert (tmp_path / "cifar-100-python" / "train").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cifar-100-python", "cifar-100-python.tar.gz"]


def lines(error: pytest.ExceptionInfo[DataUnavailable]) -> list[str]:
    found = str(error.value).split("\n")
    assert len(found) <= 3
    return found


def test_wrong_checksums_are_refused_with_the_files_name(tmp_path: Path) -> None:
    cifar100_files(tmp_path)
    with pytest.raises(DataUnavailable) as error:
        Cifar100().load(CPU, tmp_path, 0, verify=True, download=False)
    message = lines(error)
    assert "MD5" in message[0]
    assert "cifar-100-python.tar.gz" in message[1]
    assert "data.verify=false" in message[2]


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    (cifar100_files(tmp_path) / "test").unlink()
    with pytest.raises(DataUnavailable, match="test"):
        load(tmp_path)


def test_missing_without_download_says_what_to_put_where(tmp_path: Path) -> None:
    with pytest.raises(DataUnavailable) as error:
        load(tmp_path / "nowhere")
    message = lines(error)
    assert "cifar100 is missing" in message[0]
    assert "cifar-100-python.tar.gz (MD5 eb9058c3a382ffc7106e4002c42a8d85)" in message[1]
    assert str(tmp_path / "nowhere") in message[1]
    assert message[2] == "from https://www.cs.toronto.edu/~kriz/cifar.html"
    assert not (tmp_path / "nowhere").exists()


def test_offline_fails_soon_and_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    mirrors = tuple(f"http://127.0.0.1:{port}/{i}/{{name}}/{{archive}}" for i in range(3))
    monkeypatch.setattr(cifar_module, "MIRRORS", mirrors)
    start = time.monotonic()
    with pytest.raises(DataUnavailable, match="Connection refused") as error:
        Cifar100().load(CPU, tmp_path / "nowhere", 0)
    assert time.monotonic() - start < 20
    assert len(lines(error)) == 3
    assert not (tmp_path / "nowhere").exists()


def test_a_damaged_archive_is_named(tmp_path: Path) -> None:
    (tmp_path / "cifar-100-python.tar.gz").write_bytes(b"not a tar file")
    with pytest.raises(DataUnavailable, match=r"cifar-100-python\.tar\.gz cannot be unpacked") as error:
        load(tmp_path)
    assert len(lines(error)) == 3


class Bomb:
    """Unpickling this by any ordinary reader creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_unverified_files_run_no_code(tmp_path: Path) -> None:
    folder, proof = cifar100_files(tmp_path), tmp_path / "proof"
    dump(folder / "train", {"data": Bomb(proof), "fine_labels": []})
    with pytest.raises(DataUnavailable, match="is not allowed in a data file") as error:
        load(tmp_path)
    assert len(lines(error)) == 3
    assert not proof.exists()
    pickle.loads((folder / "train").read_bytes())  # the bomb is a real one
    assert proof.exists()


def test_unverified_meta_runs_no_code_either(tmp_path: Path) -> None:
    folder, proof = cifar100_files(tmp_path), tmp_path / "proof"
    dump(folder / "meta", {"fine_label_names": Bomb(proof)})
    with pytest.raises(DataUnavailable, match="is not allowed in a data file"):
        load(tmp_path)
    assert not proof.exists()


PIXELS = np.zeros((2, 3072), dtype=np.uint8)


@pytest.mark.parametrize(
    "content",
    [
        {"data": PIXELS, "fine_labels": [0, 100]},
        {"data": PIXELS, "fine_labels": [0, -1]},
        {"data": PIXELS, "fine_labels": [0]},
        {"data": PIXELS.astype(np.float32), "fine_labels": [0, 1]},
        {"data": PIXELS[:, :3071], "fine_labels": [0, 1]},
        {"data": [1, 2], "fine_labels": [0, 1]},
        {"fine_labels": [0, 1]},
        [1, 2],
    ],
)
def test_implausible_contents_are_refused(tmp_path: Path, content: Any) -> None:
    dump(cifar100_files(tmp_path) / "train", content)
    with pytest.raises(DataUnavailable, match=r"3 × 32 × 32|other things than bytes"):
        load(tmp_path)


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    path = cifar100_files(tmp_path) / "train"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(DataUnavailable, match="train: "):
        load(tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"validation": 0}, "validation must be >= 1, got 0"),
        ({"validation": 50_000}, "validation must be < 50000, got 50000"),
        ({"subset": 0}, "subset must be null or in 1 … 45000, got 0"),
        ({"subset": 45_001}, "subset must be null or in 1 … 45000, got 45001"),
        ({"label_smoothing": 1.0}, "label_smoothing must be in [0, 1), got 1.0"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match="^" + message.replace("[", r"\[").replace(")", r"\)")):
        Cifar100(**options)


def test_sizes_are_checked_against_the_files(tmp_path: Path) -> None:
    cifar100_files(tmp_path)
    with pytest.raises(ValueError, match=r"^validation must be < 40"):
        load(tmp_path, validation=40)
    with pytest.raises(ValueError, match=r"^subset must be <= 30"):
        load(tmp_path, subset=31)


if (Path(os.environ.get("CLIPBENCH_DATA", "")) / "cifar-100-python").is_dir():

    @pytest.mark.slow
    def test_the_real_files() -> None:
        dataset = Cifar100()
        data = dataset.load(CPU, Path(os.environ["CLIPBENCH_DATA"]), 0, download=False)
        assert dataset.provenance["verified"] is True
        assert data.sizes == {"train": 45_000, "validation": 5_000, "test": 10_000}
        counts = sum(torch.bincount(b.targets, minlength=100) for b in data.evaluation("test", 5000))
        assert torch.equal(counts, torch.full((100,), 100))  # 100 test images of each class, says the official page
        total = sum(batch.inputs.double().mean((2, 3)).sum(0) for batch in data.evaluation("train", 5000))
        square = sum(batch.inputs.double().square().mean((2, 3)).sum(0) for batch in data.evaluation("train", 5000))
        mean = total / 45_000
        torch.testing.assert_close(mean, torch.zeros(3, dtype=torch.float64), atol=0.01, rtol=0)
        spread = (square / 45_000 - mean.square()).sqrt()
        torch.testing.assert_close(spread, torch.ones(3, dtype=torch.float64), atol=0.01, rtol=0)
