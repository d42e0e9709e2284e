"""Tiny Shakespeare (A. Karpathy 2015, github.com/karpathy/char-rnn): 1 115 394 characters, 65 distinct.

A sample is a window of `context` characters, its target the same window one character further on.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from clipbench.config.checks import at_least, require
from clipbench.data.base import Batch, DataUnavailable, Spec, slices
from clipbench.data.download import digest, fetch
from clipbench.data.tasks import NextToken

SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
VOCABULARY = 65
FILE = "shakespeare/input.txt"
# The author's repository, then the copy TensorFlow's tutorial on text generation reads; both SHA-256-checked
# on arrival.
MIRRORS = (
    "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt",
    "https://storage.googleapis.com/download.tensorflow.org/data/shakespeare.txt",
)


class TextData:
    """Token sequences on the device (see clipbench.data.base.Data).

    Train samples are all windows, by their first token. Evaluation takes windows that do not overlap, from
    the start; what does not fill a window at the end is left out.
    """

    def __init__(self, splits: dict[str, Tensor], context: int, subset: int | None) -> None:
        """splits: (length,) uint8 tokens on the device.  subset: training windows kept (None: all)."""
        # Windows are views (length − context, context + 1) of the tokens, not copies.
        self._windows = {name: tokens.unfold(0, context + 1, 1) for name, tokens in splits.items()}
        self._windows["train"] = self._windows["train"][:subset]
        self._context = context
        self.sizes = {name: len(self._apart(name)) for name in splits}
        self.sizes["train"] = len(self._windows["train"])

    def _apart(self, split: str) -> Tensor:
        """The windows of `split` that do not overlap (but for the one character between input and target)."""
        return self._windows[split][:: self._context]

    def batch(self, indices: Tensor, generator: torch.Generator) -> Batch:
        return _shifted(self._windows["train"].index_select(0, indices))

    def evaluation(self, split: str, batch_size: int) -> Iterator[Batch]:
        windows = self._apart(split)
        for rows in slices(len(windows), batch_size):
            yield _shifted(windows[rows])


def _shifted(windows: Tensor) -> Batch:
    """Inputs and targets (n, context) of windows (n, context + 1)."""
    tokens = windows.long()
    return Batch(tokens[:, :-1], tokens[:, 1:])


def trivial(train: Tensor, held_out: Tensor, vocabulary: int) -> dict[str, float]:
    """Loss (nats) and accuracy on `held_out` of predicting every token by its frequency in `train`, plus one each."""
    counts = torch.bincount(train.long(), minlength=vocabulary).double() + 1
    loss = -(counts / counts.sum()).log()[held_out.long()].mean()
    return {"loss": float(loss), "accuracy": float((held_out.long() == counts.argmax()).double().mean())}


class ShakespeareChar:
    """See clipbench.data.base.Dataset.

    context: characters of a sample.  held_out: share at the text's end that is not trained on; its first half
    is the validation split, its second half the test split (nanoGPT has no test split and validates on all of
    it).
    subset: training windows kept, those that begin first (None: all).  label_smoothing: in [0, 1).
    The split is by position, since neighbouring windows overlap: the split seed has no say.
    Raises ValueError where context or subset is below 1, or held_out not in (0, 1).
    """

    def __init__(
        self,
        context: int = 256,
        held_out: float = 0.1,
        label_smoothing: float = 0.0,
        subset: int | None = None,
    ) -> None:
        at_least("context", context, 1)
        require(0 < held_out < 1, "held_out", "in (0, 1)", held_out)
        require(subset is None or subset >= 1, "subset", "null or >= 1", subset)
        self.spec = Spec("tokens", (context,), VOCABULARY, "shakespeare_char")
        self.task = NextToken(label_smoothing)
        self.provenance: dict[str, Any] = {}
        self.held_out = held_out
        self.subset = subset

    def load(
        self, device: torch.device, root: Path, split_seed: int, verify: bool = True, download: bool = True
    ) -> TextData:
        """Read <root>/shakespeare/input.txt; see clipbench.data.base.Dataset.load."""
        tokens = self._encode(self._read(Path(root) / FILE, verify, download)).to(device)
        context = self.spec.shape[0]
        cut = int(len(tokens) * (1 - self.held_out))
        half = cut + (len(tokens) - cut) // 2
        splits = {"train": tokens[:cut], "validation": tokens[cut:half], "test": tokens[half:]}
        shortest = min(len(part) for part in splits.values())
        require(context < shortest, "context", f"< {shortest}, the length of the shortest split", context)
        windows = cut - context
        require(self.subset is None or self.subset <= windows, "subset", f"null or <= {windows}", self.subset)
        self.provenance["trivial"] = trivial(splits["train"], splits["validation"], VOCABULARY)
        return TextData(splits, context, self.subset)

    def _read(self, path: Path, verify: bool, download: bool) -> bytes:
        """The file's bytes; fills `provenance`."""
        reason = "downloading is off (data.download=false)"
        if not path.exists() and download:
            try:
                fetch(MIRRORS, path, "sha256", SHA256)
            except DataUnavailable as error:
                reason = str(error)
        if not path.exists():
            raise DataUnavailable(
                f"shakespeare_char is missing: {path} is not there, and {reason}\n"
                f"put the tiny-Shakespeare text (SHA-256 {SHA256[:8]}…) there ({FILE} in data.root, variable "
                f"CLIPBENCH_DATA),\nfrom {MIRRORS[0]}"
            )
        checksum = digest(path, "sha256")
        if verify and checksum != SHA256:
            raise DataUnavailable(
                f"shakespeare_char: the SHA-256 of {path} is {checksum[:8]}…, not {SHA256[:8]}…\n"
                f"put the original there (or use this file with data.verify=false),\nfrom {MIRRORS[0]}"
            )
        self.provenance = {"files": {FILE: f"sha256:{checksum}"}, "verified": verify}
        return path.read_bytes()

    def _encode(self, text: bytes) -> Tensor:
        """(length,) uint8: each byte's rank among the distinct bytes of the text."""
        alphabet, ranks = np.unique(np.frombuffer(text, dtype=np.uint8), return_inverse=True)
        if len(alphabet) > VOCABULARY:
            raise DataUnavailable(f"shakespeare_char has {VOCABULARY} characters, but this text has {len(alphabet)}")
        return torch.from_numpy(ranks.astype(np.uint8))
