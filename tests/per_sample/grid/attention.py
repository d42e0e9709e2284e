"""Attention: nn.MultiheadAttention and the transformer layers, batch first and time first, with every readout."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tests.per_sample.grid.base import HEADS, STEPS, Case, Losses, bowl, head, lengths, options

WIDTH, KEYS = 4, 3


class Attend(nn.Module):
    """nn.MultiheadAttention on its own input, or on others of another width and length."""

    def __init__(self, cross: bool = False, mask: str = "", weights: bool = False, **options: Any) -> None:
        super().__init__()
        if cross:
            options |= {"kdim": KEYS, "vdim": KEYS}
        self.attention = nn.MultiheadAttention(WIDTH, 2, **options)
        self.cross, self.mask, self.weights = cross, mask, weights

    def forward(self, x: Tensor) -> Tensor:
        """(n, t, width) → the same."""
        n = len(x)
        first = self.attention.batch_first
        keys = x[:, 1:, :KEYS] * 2 if self.cross else x
        chosen: dict[str, Any] = {"need_weights": self.weights}
        if self.mask == "padding":
            chosen["key_padding_mask"] = torch.arange(keys.shape[1]) >= lengths(n)[:, None]
        if self.mask == "causal":
            chosen["attn_mask"] = torch.ones(STEPS, STEPS, dtype=torch.bool).triu(1)
        if not first:
            x, keys = x.transpose(0, 1), keys.transpose(0, 1)
        out, weights = self.attention(x, keys, keys, **chosen)
        out = out if first else out.transpose(0, 1)
        return torch.cat([out, weights], -1) if self.weights else out


def _attention() -> dict[str, Case]:
    cases: dict[str, Case] = {}
    grid: list[dict[str, Any]] = [
        {},
        {"bias": False},
        {"cross": True},
        {"cross": True, "bias": False},
        {"add_bias_kv": True},
        {"add_zero_attn": True},
        {"weights": True},
        {"mask": "padding"},
        {"mask": "causal"},
        {"cross": True, "mask": "padding"},
        {"add_bias_kv": True, "mask": "padding", "weights": True},
    ]
    for chosen in grid:
        for first in (True, False):
            name = f"MultiheadAttention, {'batch' if first else 'time'} first, {options(**chosen)}"
            cases[name] = _case(lambda c=chosen, f=first: Attend(**c, batch_first=f), "all", True)
    return cases


def _case(make: Any, readout: str, batch_first: bool, on_all: bool = False) -> Case:
    """A model of (n, t, width) or (t, n, width) with a linear layer after or before the readout."""

    def case(n: int) -> tuple[nn.Module, Losses]:
        model = nn.ModuleList([make(), nn.Linear(WIDTH, 2)]).double()
        x = torch.randn(n, STEPS, WIDTH).double()
        x = x if batch_first else x.transpose(0, 1).contiguous()
        time = 1 if batch_first else 0

        def losses() -> Tensor:
            out = model[0](x)
            if out.shape[-1] != WIDTH:
                return bowl(out)
            return bowl(head(readout, model[1](out), time) if on_all else model[1](head(readout, out, time)))

        return model, losses

    return case


def _encoder(layers: int, **chosen: Any) -> nn.Module:
    layer = nn.TransformerEncoderLayer(WIDTH, 2, 8, dropout=0.0, **chosen)
    return nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)


class Decode(nn.Module):
    """A decoder that looks at a memory made of the same sample."""

    def __init__(self, layers: int, **chosen: Any) -> None:
        super().__init__()
        layer = nn.TransformerDecoderLayer(WIDTH, 2, 8, dropout=0.0, **chosen)
        self.decoder = nn.TransformerDecoder(layer, layers)

    def forward(self, x: Tensor) -> Tensor:
        memory = x.flip(2) * 0.5
        return self.decoder(x, memory)


class Whole(nn.Module):
    """nn.Transformer with a learned query, one for all samples."""

    def __init__(self, batch_first: bool) -> None:
        super().__init__()
        self.body = nn.Transformer(WIDTH, 2, 1, 1, 8, dropout=0.0, batch_first=batch_first)
        self.query = nn.Parameter(torch.randn(1, 3, WIDTH) if batch_first else torch.randn(3, 1, WIDTH))
        self.axis = 0 if batch_first else 1

    def forward(self, x: Tensor) -> Tensor:
        sizes = [-1, -1, -1]
        sizes[self.axis] = x.shape[self.axis]
        return self.body(x, self.query.expand(sizes))


def _transformers() -> dict[str, Case]:
    cases: dict[str, Case] = {}
    for first in (True, False):
        word = f"{'batch' if first else 'time'} first"
        for readout in HEADS:
            for on_all in (False, True):
                name = f"TransformerEncoder, {word}, {readout}{', head before' if on_all else ''}"
                cases[name] = _case(lambda f=first: _encoder(1, batch_first=f), readout, first, on_all)
        for before in (True, False):
            for readout in ("last", "mean"):
                name = f"TransformerEncoder × 2, {word}, {options(norm_first=before)}, {readout}"
                cases[name] = _case(
                    lambda f=first, b=before: _encoder(2, batch_first=f, norm_first=b, activation="gelu"),
                    readout, first,
                )  # fmt: skip
                name = f"TransformerDecoder × 2, {word}, {options(norm_first=before)}, {readout}"
                cases[name] = _case(lambda f=first, b=before: Decode(2, batch_first=f, norm_first=b), readout, first)
        cases[f"TransformerEncoder, {word}, no bias"] = _case(
            lambda f=first: _encoder(1, batch_first=f, bias=False), "last", first
        )
        cases[f"Transformer, {word}, learned query"] = _case(lambda f=first: Whole(f), "mean", first)
        cases[f"Transformer, {word}, learned query, last"] = _case(lambda f=first: Whole(f), "last", first)
    return cases


CASES: dict[str, Case] = _attention() | _transformers()
