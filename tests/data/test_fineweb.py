"""FineWeb's loader on small local texts: tokens, windows, splits, streaming, refusals."""

from __future__ import annotations

import re
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from clipbench.data import DataUnavailable, FineWeb

CPU = torch.device("cpu")
SMALL: dict[str, Any] = {
    "context": 4, "tokens": 40, "validation_tokens": 9, "test_tokens": 9, "source": "local", "encoding": "bytes",
}  # fmt: skip


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "fineweb"
    folder.mkdir()
    (folder / "b.txt").write_text("the second text, of which not all is taken at all", encoding="utf-8")
    (folder / "a.txt").write_text("first: naïve", encoding="utf-8")
    return tmp_path


def test_texts_become_one_file_of_tokens_with_a_mark_before_each(root: Path) -> None:
    FineWeb(**SMALL).load(CPU, root, 0)
    tokens = np.fromfile(root / "fineweb" / "tokens-bytes.bin", dtype="<u2")
    expected = b"\0" + "first: naïve".encode() + b"\0" + b"the second text, of which not all is taken at all"
    assert tokens.tolist() == list(expected[:58])
    assert not list((root / "fineweb").glob("*.part"))


def test_windows_do_not_overlap_and_targets_are_one_further_on(root: Path) -> None:
    dataset = FineWeb(**SMALL)
    data = dataset.load(CPU, root, 0)
    tokens = torch.from_numpy(np.fromfile(root / "fineweb" / "tokens-bytes.bin", dtype="<u2").astype(np.int64))
    assert data.sizes == {"train": 9, "validation": 2, "test": 2}
    batch = data.batch(torch.tensor([2, 0]), torch.Generator())
    assert batch.inputs.tolist() == [tokens[8:12].tolist(), tokens[:4].tolist()]
    assert batch.targets.tolist() == [tokens[9:13].tolist(), tokens[1:5].tolist()]
    (held,) = data.evaluation("validation", 5)
    assert held.inputs.tolist() == [tokens[40:44].tolist(), tokens[44:48].tolist()]
    assert next(data.evaluation("test", 1)).targets.tolist() == [tokens[50:54].tolist()]
    assert dataset.spec.outputs == 256
    assert dataset.provenance["files"]["tokens-bytes.bin"].startswith("sha256:")


def test_a_token_file_of_ones_own_is_taken_and_tokens_above_half_of_uint16_survive(tmp_path: Path) -> None:
    (tmp_path / "fineweb").mkdir()
    tokens = np.arange(50_200, 50_257, dtype="<u2")
    tokens.tofile(tmp_path / "fineweb" / "tokens-gpt2.bin")
    data = FineWeb(**SMALL | {"encoding": "gpt2", "source": "stream"}).load(CPU, tmp_path, 0, download=False)
    assert data.batch(torch.tensor([0]), torch.Generator()).targets.tolist() == [[50_201, 50_202, 50_203, 50_204]]
    tokens[3] = 50_257
    tokens.tofile(tmp_path / "fineweb" / "tokens-gpt2.bin")
    with pytest.raises(DataUnavailable, match="must hold tokens below 50257, got 50257"):
        FineWeb(**SMALL | {"encoding": "gpt2"}).load(CPU, tmp_path, 0)


def test_a_stream_is_read_only_as_far_as_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def load_dataset(repository: str, **options: Any) -> Any:
        asked.append((repository, options))
        return ({"text": "ten tokens"} for number in range(10**9))

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    data = FineWeb(**SMALL | {"source": "stream"}).load(CPU, tmp_path, 0)
    assert asked == [("HuggingFaceFW/fineweb", {"name": "sample-10BT", "split": "train", "streaming": True})]
    assert data.sizes["train"] == 9
    FineWeb(**SMALL | {"source": "stream"}).load(CPU, tmp_path, 0, download=False)
    assert len(asked) == 1, "the token file is found"


def test_gpt2s_encoding_is_tiktokens(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def get_encoding(name: str) -> Any:
        return types.SimpleNamespace(encode_ordinary=lambda text: [len(name)] * len(text))

    monkeypatch.setitem(sys.modules, "tiktoken", types.SimpleNamespace(get_encoding=get_encoding))
    FineWeb(**SMALL | {"encoding": "gpt2"}).load(CPU, root, 0)
    tokens = np.fromfile(root / "fineweb" / "tokens-gpt2.bin", dtype="<u2").tolist()
    assert tokens[:14] == [50_256, *[4] * 12, 50_256]


def test_what_is_missing_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataUnavailable, match=r"neither .*tokens-bytes.bin nor a text"):
        FineWeb(**SMALL).load(CPU, tmp_path, 0)
    with pytest.raises(DataUnavailable, match="downloading is off"):
        FineWeb(**SMALL | {"source": "stream"}).load(CPU, tmp_path, 0, download=False)
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataUnavailable, match=re.escape("pip install 'clipbench[fineweb]'")):
        FineWeb(**SMALL | {"source": "stream"}).load(CPU, tmp_path, 0)


def test_too_few_tokens_are_refused(root: Path) -> None:
    with pytest.raises(DataUnavailable, match=r"needs more than 4 tokens .* in every split, got 40, 4, 14"):
        FineWeb(**SMALL | {"validation_tokens": 4, "test_tokens": 14}).load(CPU, root, 0)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"context": 0}, "context must be >= 1, got 0"),
        ({"test_tokens": 0}, "test_tokens must be >= 1, got 0"),
        ({"source": "web"}, "source must be one of stream, local, got web"),
        ({"encoding": "words"}, "encoding must be one of gpt2, bytes, got words"),
    ],
)
def test_bad_options(option: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        FineWeb(**SMALL | option)
