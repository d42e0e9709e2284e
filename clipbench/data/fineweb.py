"""FineWeb (Penedo et al. 2024, arXiv 2406.17557) as tokens: streamed from Hugging Face once, or from local texts.

The tokens lie in one file of little-endian uint16, `<root>/fineweb/tokens-<encoding>.bin`; who has such a file puts it
there. Without it, texts are read from `<root>/fineweb/*.txt` (source "local") or streamed (source "stream", which
needs the extra "fineweb"), encoded, and written to it.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from clipbench.config.checks import at_least, one_of
from clipbench.data.base import Batch, DataUnavailable, Spec, slices
from clipbench.data.download import digest
from clipbench.data.tasks import NextToken

Source = Literal["stream", "local"]
Encoding = Literal["gpt2", "bytes"]
Encode = Callable[[str], list[int]]
REPOSITORY, SUBSET = "HuggingFaceFW/fineweb", "sample-10BT"
VOCABULARY = {"gpt2": 50_257, "bytes": 256}
END_OF_TEXT = {"gpt2": 50_256, "bytes": 0}  # between two texts
CHUNK = 1 << 20  # tokens that are written at a time


class TokenData:
    """Token sequences on the device (see clipbench.data.base.Data): windows that do not overlap but for one token."""

    def __init__(self, splits: dict[str, Tensor], context: int) -> None:
        """splits: (length,) int16 on the device, the bits of uint16."""
        self._windows = {name: tokens.unfold(0, context + 1, context) for name, tokens in splits.items()}
        self.sizes = {name: len(windows) for name, windows in self._windows.items()}

    def batch(self, indices: Tensor, generator: torch.Generator) -> Batch:
        return _shifted(self._windows["train"].index_select(0, indices))

    def evaluation(self, split: str, batch_size: int) -> Iterator[Batch]:
        windows = self._windows[split]
        for rows in slices(len(windows), batch_size):
            yield _shifted(windows[rows])


def _shifted(windows: Tensor) -> Batch:
    tokens = windows.long() & 0xFFFF
    return Batch(tokens[:, :-1], tokens[:, 1:])


class FineWeb:
    """See clipbench.data.base.Dataset.

    context: tokens of a sample.  tokens: most tokens to train on; validation_tokens and test_tokens follow them.
    source: where texts come from if there is no token file.  encoding: GPT-2's byte pairs, or plain bytes.
    The split is by position: the split seed has no say. Raises ValueError where a number is below 1.
    """

    def __init__(
        self,
        context: int = 1024,
        tokens: int = 2_000_000_000,
        validation_tokens: int = 1_000_000,
        test_tokens: int = 1_000_000,
        source: Source = "stream",
        encoding: Encoding = "gpt2",
    ) -> None:
        numbers = {"context": context, "tokens": tokens}
        for name, number in (numbers | {"validation_tokens": validation_tokens, "test_tokens": test_tokens}).items():
            at_least(name, number, 1)
        one_of("source", source, get_args(Source))
        one_of("encoding", encoding, get_args(Encoding))
        self.spec = Spec("tokens", (context,), VOCABULARY[encoding], "fineweb")
        self.task = NextToken()
        self.provenance: dict[str, Any] = {}
        self.sizes = (tokens, validation_tokens, test_tokens)
        self.source, self.encoding = source, encoding

    def load(
        self, device: torch.device, root: Path, split_seed: int, verify: bool = True, download: bool = True
    ) -> TokenData:
        """Read the token file, making it where it is missing; see clipbench.data.base.Dataset.load."""
        path = Path(root) / "fineweb" / f"tokens-{self.encoding}.bin"
        if not path.exists():
            self._make(path, download)
        tokens = np.fromfile(path, dtype="<u2", count=sum(self.sizes))
        if int(tokens.max(initial=0)) >= self.spec.outputs:
            raise DataUnavailable(f"{path} must hold tokens below {self.spec.outputs}, got {tokens.max()}")
        _, validation, test = self.sizes
        held_out = validation + test
        needed = held_out + self.spec.shape[0] + 1
        if min(validation, test) <= self.spec.shape[0] or len(tokens) < needed:
            raise DataUnavailable(
                f"fineweb needs more than {self.spec.shape[0]} tokens (dataset.context) in every split, "
                f"got {len(tokens) - held_out}, {validation}, {test} from {path}"
            )
        self.provenance = {"files": {path.name: f"sha256:{digest(path, 'sha256')}"}, "verified": False}
        whole = torch.from_numpy(tokens.view(np.int16)).to(device)
        train, end = len(whole) - held_out, len(whole) - test
        return TokenData(
            {"train": whole[:train], "validation": whole[train:end], "test": whole[end:]}, self.spec.shape[0]
        )

    def _make(self, path: Path, download: bool) -> None:
        texts = _local_texts(path) if self.source == "local" else _streamed_texts(path, download)
        encode = _encoder(self.encoding)
        end = [END_OF_TEXT[self.encoding]]
        tokens = itertools.chain.from_iterable(end + encode(text) for text in texts)
        write_tokens(path, itertools.islice(tokens, sum(self.sizes)))


def write_tokens(path: Path, tokens: Iterable[int]) -> None:
    """Write uint16 tokens aside and rename. Raises DataUnavailable where that cannot be done."""
    part = path.with_suffix(f".{os.getpid()}.part")
    remaining = iter(tokens)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open("wb") as file:
            while len(chunk := np.fromiter(itertools.islice(remaining, CHUNK), dtype="<u2")):
                chunk.tofile(file)
        part.replace(path)
    except OSError as error:
        raise DataUnavailable(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        part.unlink(missing_ok=True)


def _local_texts(path: Path) -> Iterator[str]:
    files = sorted(path.parent.glob("*.txt"))
    if not files:
        raise DataUnavailable(
            f"fineweb is missing: neither {path} nor a text (*.txt) beside it is there\n"
            "put one there, or stream it with dataset.source=stream"
        )
    return (file.read_text(encoding="utf-8") for file in files)


def _streamed_texts(path: Path, download: bool) -> Iterator[str]:
    if not download:
        raise DataUnavailable(f"fineweb is missing: {path} is not there, and downloading is off (data.download=false)")
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise DataUnavailable(
            f"fineweb is missing: {path} is not there, and streaming needs `pip install 'clipbench[fineweb]'`"
        ) from error
    rows = load_dataset(REPOSITORY, name=SUBSET, split="train", streaming=True)
    return (row["text"] for row in rows)


def _encoder(encoding: Encoding) -> Encode:
    if encoding == "bytes":
        return lambda text: list(text.encode())
    try:
        import tiktoken
    except ImportError as error:
        raise DataUnavailable("dataset.encoding=gpt2 needs `pip install 'clipbench[fineweb]'`") from error
    encode: Encode = tiktoken.get_encoding("gpt2").encode_ordinary
    return encode
