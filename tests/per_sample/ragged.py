"""Models whose rows are laid out in other ways than (sample, position): time first, packed, routed, masked, cut.

Each is a module that maps a batch to losses (n,); `batch(n)` draws one, other every time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from clipbench.per_sample import PerSampleClipper
from clipbench.per_sample.graph import trace
from clipbench.per_sample.rules import Use
from clipbench.per_sample.traces import Known

WIDTH = 6


def uses_of(losses: Tensor, model: nn.Module) -> list[Use]:
    """What the engine finds to read parameters below the losses."""
    return trace(losses, {id(p): p for p in model.parameters()}, Known()).uses


def sample_gradients(losses: Tensor, model: nn.Module) -> Tensor:
    """Every loss's own gradient by a backward pass of its own, (n, parameters)."""
    params = list(model.parameters())
    rows = []
    for loss in losses:
        grads = torch.autograd.grad(loss, params, retain_graph=True, allow_unused=True)
        parts = [torch.zeros_like(p) if g is None else g for p, g in zip(params, grads, strict=True)]
        rows.append(torch.cat([part.flatten() for part in parts]))
    return torch.stack(rows)


def error(clipper: PerSampleClipper, model: nn.Module, losses: Tensor) -> float:
    """Largest relative error of norms and of the gradient with weights 1, 1/2, 1/3, … on the samples.

    These weights, unlike clipping, tell every sample from every other.
    """
    rows = sample_gradients(losses, model)
    numbers = torch.arange(1, len(losses) + 1, dtype=rows.abs().dtype)
    clipper.weight = lambda norms, tau: 1.0 / numbers
    model.zero_grad()
    norms = clipper.backward(losses).norms
    grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in model.parameters()]
    found, wanted = torch.cat([g.flatten() for g in grads]), (rows / numbers[:, None]).mean(0)
    off = (norms - rows.norm(dim=1)).abs().max() / rows.norm(dim=1).max().clamp(min=1e-30)
    return max(off.item(), ((found - wanted).abs().max() / rows.abs().max().clamp(min=1e-30)).item())


def squares(out: Tensor) -> Tensor:
    """(n, …) → (n,), with a gradient that vanishes nowhere in particular."""
    out = out.flatten(1)
    return 0.5 * out.square().sum(1) + out.sum(1)


class Model(nn.Module):
    """A module with a batch of its own."""

    def batch(self, n: int) -> Any:
        """Inputs for n samples."""
        return torch.randn(n, 7, WIDTH, dtype=self.dtype)

    @property
    def dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype


class TimeFirst(Model):
    """PyTorch's default: `head(layer(emb(x.T))[0])` with the last step, one in the middle, all, or their mean taken."""

    def __init__(self, kind: type[nn.Module], take: str, steps: int = 5) -> None:
        super().__init__()
        self.take, self.steps = take, steps
        self.table, self.head = nn.Embedding(9, WIDTH), nn.Linear(WIDTH, 3)
        if issubclass(kind, nn.RNNBase):
            self.layer: nn.Module = kind(WIDTH, WIDTH)
        else:
            block = nn.TransformerEncoderLayer(WIDTH, 2, 12, dropout=0.0)
            self.layer = nn.TransformerEncoder(block, 2, enable_nested_tensor=False)

    def batch(self, n: int) -> Tensor:
        return torch.randint(0, 9, (n, self.steps))

    def forward(self, x: Tensor) -> Tensor:
        out = self.layer(self.table(x.t()))
        out = out[0] if isinstance(out, tuple) else out
        if self.take == "last state":
            return squares(self.head(out[-1]))
        logits = self.head(out)
        if self.take == "mean":
            return squares(logits.mean(0))
        if self.take == "all":
            return squares(logits.transpose(0, 1))
        return squares(logits[-1 if self.take == "last" else self.steps // 2])


class Packed(Model):
    """A classifier on packed sequences, from the last state or from the padded outputs."""

    def __init__(self, kind: type[nn.RNNBase], states: bool = True) -> None:
        super().__init__()
        self.layer, self.head, self.states = kind(WIDTH, WIDTH, batch_first=True), nn.Linear(WIDTH, 3), states

    def batch(self, n: int) -> tuple[Tensor, Tensor]:
        return torch.randn(n, 9, WIDTH, dtype=self.dtype), torch.randint(3, 10, (n,))

    def forward(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        x, lengths = batch
        packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        out, state = self.layer(packed)
        if self.states:
            state = state[0] if isinstance(state, tuple) else state
            return squares(self.head(state[-1]))
        padded, _ = pad_packed_sequence(out, batch_first=True)
        return squares(self.head(padded).sum(1))


class Segmented(Model):
    """Rows of samples of any size in any order, as in batches of graphs: losses by index_add."""

    def __init__(self, spread: float = 4.0) -> None:
        super().__init__()
        self.first, self.second, self.spread = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 2), spread

    def batch(self, n: int) -> tuple[Tensor, Tensor, int]:
        sizes = torch.randint(1, 2 + int(self.spread), (n,))
        index = torch.arange(n).repeat_interleave(sizes)
        index = index[torch.randperm(len(index))]
        return torch.randn(len(index), WIDTH, dtype=self.dtype), index, n

    def forward(self, batch: tuple[Tensor, Tensor, int]) -> Tensor:
        x, index, n = batch
        rows = squares(self.second(torch.tanh(self.first(x))))
        return torch.zeros(n, dtype=rows.dtype).index_add(0, index, rows)


class Experts(Model):
    """A mixture of experts: every token goes to the expert with the largest score, at most `capacity` of them."""

    def __init__(self, capacity: int = 100) -> None:
        super().__init__()
        self.gate = nn.Linear(WIDTH, 3)
        self.experts = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.head, self.capacity = nn.Linear(WIDTH, 2), capacity

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(0, 1)
        scores = self.gate(tokens).softmax(1)
        out = torch.zeros_like(tokens)
        for number, expert in enumerate(self.experts):
            mine = torch.nonzero(scores.argmax(1) == number)[: self.capacity, 0]
            if len(mine):
                out = out.index_add(0, mine, expert(tokens[mine]) * scores[mine, number, None])
        return squares(self.head(out.view_as(x) + x))


class MaskedTokens(Model):
    """A head on the masked tokens only, picked by a mask over the whole batch."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 4)

    def batch(self, n: int) -> tuple[Tensor, Tensor]:
        return torch.randn(n, 7, WIDTH, dtype=self.dtype), torch.rand(n, 7) < 0.4

    def forward(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        x, mask = batch
        rows = squares(self.head(self.body(x).tanh()[mask]))
        return torch.zeros(len(x), dtype=rows.dtype).index_add(0, torch.nonzero(mask)[:, 0], rows)


class Adaptive(Model):
    """nn.AdaptiveLogSoftmaxWithLoss: rare classes have a tail of their own, which sees their rows only."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(WIDTH, 8)
        self.softmax = nn.AdaptiveLogSoftmaxWithLoss(8, 12, [4, 8], div_value=2.0)

    def batch(self, n: int) -> tuple[Tensor, Tensor]:
        return torch.randn(n, WIDTH, dtype=self.dtype), torch.randint(0, 12, (n,))

    def forward(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        return -self.softmax(self.body(batch[0]).tanh(), batch[1]).output


class Padded(Model):
    """Padded sequences, the loss averaged over the true tokens."""

    def __init__(self, time_first: bool = False) -> None:
        super().__init__()
        self.body, self.norm, self.head = nn.Linear(WIDTH, WIDTH), nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 4)
        self.time_first = time_first

    def batch(self, n: int) -> tuple[Tensor, Tensor]:
        return torch.randn(n, 7, WIDTH, dtype=self.dtype), torch.randint(1, 8, (n,))

    def forward(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        x, lengths = batch
        mask = torch.arange(7) < lengths[:, None]
        x = x.transpose(0, 1) if self.time_first else x
        out = self.head(self.norm(self.body(x)).tanh())
        out = out.transpose(0, 1) if self.time_first else out
        return (out.square().sum(2) * mask).sum(1) / lengths


class LastToken(Model):
    """The last true token picked by its number, as classifiers on decoders do."""

    def __init__(self, gather: bool = False) -> None:
        super().__init__()
        self.body, self.head, self.gather = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 4), gather

    def batch(self, n: int) -> tuple[Tensor, Tensor]:
        return torch.randn(n, 7, WIDTH, dtype=self.dtype), torch.randint(0, 7, (n,))

    def forward(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        x, last = batch
        logits = self.head(self.body(x).tanh())
        if self.gather:
            return squares(logits.gather(1, last[:, None, None].expand(-1, 1, 4)))
        return squares(logits[torch.arange(len(x)), last])


class Flipped(Model):
    """A step that reverses an axis of time, or rolls it."""

    def __init__(self, axis: int = 1) -> None:
        super().__init__()
        self.body, self.head, self.axis = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 4), axis

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.body(x).tanh()
        return squares(self.head(hidden + 0.5 * hidden.flip(self.axis) + hidden.roll(1, self.axis)))


class Middle(Model):
    """The sample axis between two others."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.norm, self.head = nn.Linear(WIDTH, WIDTH), nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 2)
        self.shift = nn.Parameter(torch.randn(WIDTH))

    def batch(self, n: int) -> Tensor:
        return torch.randn(3, n, 4, WIDTH, dtype=self.dtype)

    def forward(self, x: Tensor) -> Tensor:
        return squares(self.head(self.norm(self.body(x).tanh() + self.shift)).movedim(1, 0))


class Permuted(Model):
    """Samples sorted by a score and put back, with a layer between."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 4)

    def forward(self, x: Tensor) -> Tensor:
        order = x.sum((1, 2)).argsort()
        return squares(self.head(self.body(x)[order].tanh())[order.argsort()])


class Pieces(Model):
    """Samples of constant but unequal sizes side by side: lengths 2, 3, 2, 1, …"""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 4)

    def batch(self, n: int) -> Tensor:
        return torch.randn(sum(self.sizes(n)), WIDTH, dtype=self.dtype)

    def sizes(self, n: int) -> list[int]:
        """Rows of each sample."""
        return [(2, 3, 2, 1)[k % 4] for k in range(n)]

    def forward(self, x: Tensor) -> Tensor:
        n = next(n for n in range(1, 99) if sum(self.sizes(n)) == len(x))
        rows = squares(self.head(self.body(x).tanh()))
        return torch.stack([piece.sum() for piece in rows.split(self.sizes(n))])


MODELS: dict[str, Callable[[], Model]] = {
    **{
        f"{kind.__name__}, time first, {take}": lambda kind=kind, take=take: TimeFirst(kind, take)  # type: ignore[misc]
        for kind in (nn.LSTM, nn.GRU, nn.RNN, nn.TransformerEncoder)
        for take in ("last", "middle", "last state", "all", "mean")
    },
    **{
        f"{kind.__name__}, packed, {'states' if states else 'outputs'}": lambda kind=kind, states=states: Packed(
            kind, states
        )  # type: ignore[misc]
        for kind in (nn.LSTM, nn.GRU, nn.RNN)
        for states in (True, False)
    },
    "segments": Segmented,
    "lopsided segments": lambda: Segmented(40.0),
    "experts": Experts,
    "experts with a capacity": lambda: Experts(3),
    "masked tokens": MaskedTokens,
    "adaptive softmax": Adaptive,
    "padded": Padded,
    "padded, time first": lambda: Padded(True),
    "last token by index": LastToken,
    "last token by gather": lambda: LastToken(True),
    "flipped": Flipped,
    "samples flipped": lambda: Flipped(0),
    "sample axis in the middle": Middle,
    "sorted": Permuted,
    "pieces": Pieces,
}
