"""Windows of a small text, counted by hand, and the rules for the file."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

import pytest
import torch

from clipbench.data import DataUnavailable, ShakespeareChar
from clipbench.data import text as text_module
from clipbench.data.text import TextData
from clipbench.training.seeding import generator

CPU = torch.device("cpu")
TEXT = "".join(chr(ord("a") + i % 26) if i % 7 else "." for i in range(400))
ALPHABET = sorted(set(TEXT))


def put(root: Path, text: str = TEXT) -> Path:
    path = root / "shakespeare" / "input.txt"
    path.parent.mkdir(parents=True)
    path.write_text(text)
    return root


def load(root: Path, **options: Any) -> TextData:
    dataset = ShakespeareChar(**{"context": 6, **options})
    return dataset.load(CPU, root, 0, verify=False, download=False)


def decoded(tokens: torch.Tensor) -> list[str]:
    return ["".join(ALPHABET[int(token)] for token in row) for row in tokens]


def test_a_training_sample_is_any_window_and_its_target_is_one_further(tmp_path: Path) -> None:
    data = load(put(tmp_path))
    assert data.sizes["train"] == 360 - 6
    batch = data.batch(torch.tensor([0, 5, 353]), generator(0, "augmentation"))
    assert decoded(batch.inputs) == [TEXT[0:6], TEXT[5:11], TEXT[353:359]]
    assert decoded(batch.targets) == [TEXT[1:7], TEXT[6:12], TEXT[354:360]]
    assert batch.inputs.dtype == torch.int64


def test_evaluation_reads_each_held_out_character_once(tmp_path: Path) -> None:
    data = load(put(tmp_path))
    for split, first in (("validation", 360), ("test", 380)):
        batches = list(data.evaluation(split, 2))
        inputs = [row for batch in batches for row in decoded(batch.inputs)]
        targets = [row for batch in batches for row in decoded(batch.targets)]
        assert "".join(inputs) == TEXT[first : first + 18]  # three windows of 6 in 20 characters
        assert "".join(targets) == TEXT[first + 1 : first + 19]
        assert data.sizes[split] == len(inputs) == 3


def test_a_subset_is_the_first_windows(tmp_path: Path) -> None:
    data = load(put(tmp_path), subset=13)
    assert data.sizes["train"] == 13
    assert "".join(decoded(next(data.evaluation("train", 10)).inputs)) == TEXT[:18]
    with pytest.raises(ValueError, match=r"^subset must be null or <= 354, got 355"):
        load(tmp_path, subset=355)


def test_a_context_longer_than_a_split_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^context must be < 20"):
        load(put(tmp_path), context=20)
    assert load(tmp_path, context=19).sizes["test"] == 1


def test_another_text_is_refused_unless_verify_is_off(tmp_path: Path) -> None:
    dataset = ShakespeareChar(context=6)
    with pytest.raises(DataUnavailable, match="SHA-256") as error:
        dataset.load(CPU, put(tmp_path), 0)
    assert str(error.value).count("\n") == 2
    dataset.load(CPU, tmp_path, 0, verify=False)
    assert dataset.provenance["verified"] is False


def test_too_many_characters_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataUnavailable, match="has 65 characters, but this text has 66"):
        load(put(tmp_path, "".join(map(chr, range(33, 99))) * 10))


@pytest.mark.parametrize("download", [True, False])
def test_missing_says_what_to_put_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, download: bool) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        monkeypatch.setattr(text_module, "MIRRORS", (f"http://127.0.0.1:{closed.getsockname()[1]}/input.txt",))
    with pytest.raises(DataUnavailable, match="shakespeare_char is missing") as error:
        ShakespeareChar().load(CPU, tmp_path / "nowhere", 0, download=download)
    message = str(error.value).split("\n")
    assert len(message) == 3
    assert "shakespeare/input.txt" in message[1]
    assert ("Connection refused" in message[0]) == download
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"context": 0}, "context must be >= 1, got 0"),
        ({"held_out": 1.0}, "held_out must be in"),
        ({"held_out": 0.0}, "held_out must be in"),
        ({"subset": 0}, "subset must be null or >= 1, got 0"),
        ({"label_smoothing": -1.0}, "label_smoothing must be in"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match="^" + message):
        ShakespeareChar(**options)


if (Path(os.environ.get("CLIPBENCH_DATA", "")) / text_module.FILE).is_file():

    @pytest.mark.slow
    def test_the_real_file() -> None:
        dataset = ShakespeareChar()
        data = dataset.load(CPU, Path(os.environ["CLIPBENCH_DATA"]), 0, download=False)
        assert dataset.provenance["verified"] is True
        # The first 90 %, as nanoGPT, whose data/shakespeare_char/readme.md counts 1,003,854 tokens.
        assert data.sizes["train"] == 1_003_854 - 256
        assert max(int(batch.inputs.max()) for batch in data.evaluation("train", 1000)) == 64
