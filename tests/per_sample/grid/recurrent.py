"""Recurrent layers: batch first, time first and packed, with every readout."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from tests.per_sample.grid.base import HEADS, STEPS, Case, Losses, bowl, head, lengths, options

KINDS: dict[str, Any] = {"RNN": nn.RNN, "GRU": nn.GRU, "LSTM": nn.LSTM}
WIDTH = 5


class Classifier(nn.Module):
    """Embedding, recurrent layer, readout, linear layer: what a text classifier is."""

    def __init__(self, kind: str, readout: str, packed: bool = False, learned: bool = False, **options: Any) -> None:
        super().__init__()
        self.table = nn.Embedding(7, 4)
        self.layer = KINDS[kind](4, WIDTH, **options)
        directions = 2 if self.layer.bidirectional else 1
        width = (options.get("proj_size") or WIDTH) * directions
        self.head = nn.Linear(width, 3)
        self.readout, self.packed = readout, packed
        states = self.layer.num_layers * directions
        sizes = [width // directions, WIDTH][: 2 if kind == "LSTM" else 1]
        self.start = nn.ParameterList([nn.Parameter(torch.randn(states, 1, s)) for s in sizes] if learned else [])

    def forward(self, x: Tensor) -> Tensor:
        """Token numbers (n, t) → (n, 3) or (n, t, 3)."""
        first = self.layer.batch_first
        steps = self.table(x if first else x.t())
        state: Any = [s.expand(-1, len(x), -1).contiguous() for s in self.start]
        state = None if not state else tuple(state) if len(state) > 1 else state[0]
        if self.packed:
            steps = pack_padded_sequence(steps, lengths(len(x)), batch_first=first, enforce_sorted=False)
        out, last = self.layer(steps, state)
        if self.readout == "state":
            last = last[0] if isinstance(last, tuple) else last
            return self.head(last[-self.head.in_features // last.shape[-1] :].transpose(0, 1).flatten(1))
        if self.packed:
            out, _ = pad_packed_sequence(out, batch_first=first, total_length=STEPS)
        if self.readout == "all then last":  # the head on all steps, then one taken
            return head("last", self.head(out), 1 if first else 0)
        return self.head(head(self.readout, out, 1 if first else 0))


def classifier(*arguments: Any, **options: Any) -> Case:
    """A classifier of random tokens."""

    def case(n: int) -> tuple[nn.Module, Losses]:
        model = Classifier(*arguments, **options).double()
        x = torch.randint(7, (n, STEPS))
        return model, lambda: bowl(model(x))

    return case


def _readouts() -> dict[str, Case]:
    cases: dict[str, Case] = {}
    for kind in KINDS:
        for first in (True, False):
            for readout in (*HEADS, "state", "all then last"):
                name = f"{kind}, {'batch' if first else 'time'} first, {readout}"
                cases[name] = classifier(kind, readout, batch_first=first)
            for readout in ("all", "mean", "own last", "state"):
                name = f"{kind}, packed, {'batch' if first else 'time'} first, {readout}"
                cases[name] = classifier(kind, readout, True, batch_first=first)
    return cases


VARIANTS: list[dict[str, Any]] = [
    {"num_layers": 2},
    {"bidirectional": True},
    {"num_layers": 2, "bidirectional": True},
    {"bias": False},
]


def _variants() -> dict[str, Case]:
    cases: dict[str, Case] = {}
    for kind in KINDS:
        more = [{"proj_size": 3}, {"proj_size": 3, "bidirectional": True, "num_layers": 2}] if kind == "LSTM" else []
        more += [{"nonlinearity": "relu"}] if kind == "RNN" else []
        for chosen in VARIANTS + more:
            for first in (True, False):
                word = f"{kind}, {options(**chosen)}, {'batch' if first else 'time'} first"
                for readout in ("last", "state"):
                    cases[f"{word}, {readout}"] = classifier(kind, readout, batch_first=first, **chosen)
                cases[f"{word}, packed"] = classifier(kind, "own last", True, batch_first=first, **chosen)
        for first in (True, False):
            for packed in (False, True):
                name = f"{kind}, learned start, {options(packed=packed)}, {'batch' if first else 'time'} first"
                cases[name] = classifier(kind, "mean", packed, True, batch_first=first, num_layers=2)
    return cases


class Cells(nn.Module):
    """A recurrent cell called step by step."""

    def __init__(self, kind: type[nn.RNNCellBase], readout: str) -> None:
        super().__init__()
        self.cell, self.head, self.readout = kind(4, WIDTH), nn.Linear(WIDTH, 2), readout  # type: ignore[call-arg]

    def forward(self, x: Tensor) -> Tensor:
        state: Any = None
        out = []
        for step in x.unbind(1):
            state = self.cell(step, state)
            out.append(state[0] if isinstance(state, tuple) else state)
        return self.head(head(self.readout, torch.stack(out, 1), 1))


def _cells() -> dict[str, Case]:
    cases: dict[str, Case] = {}
    for kind in (nn.RNNCell, nn.GRUCell, nn.LSTMCell):
        for readout in ("all", "last", "own last"):

            def case(n: int, kind: Any = kind, readout: str = readout) -> tuple[nn.Module, Losses]:
                model = Cells(kind, readout).double()
                x = torch.randn(n, STEPS, 4).double()
                return model, lambda: bowl(model(x))

            cases[f"{kind.__name__}, {readout}"] = case
    return cases


CASES: dict[str, Case] = _readouts() | _variants() | _cells()
