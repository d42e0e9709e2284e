"""Embeddings and bags of them."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.per_sample.grid.base import STEPS, Case, Losses, bowl, indexed, options, stack

ROWS = 8


class Positions(nn.Module):
    """Tokens and positions, the latter looked up once for the whole batch."""

    def __init__(self, axes: int = 1) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(ROWS, 4), nn.Embedding(STEPS + 3, 4)
        self.mix = nn.Linear(4, 4)
        self.axes = axes

    def forward(self, x: Tensor) -> Tensor:
        places = torch.arange(x.shape[1]).view(*[1] * (self.axes - 1), -1)
        return self.mix(torch.tanh(self.tokens(x) * 2 + self.places(places)))


class Relative(nn.Module):
    """A table of relative positions, added to a product of steps."""

    def __init__(self, gathered: bool) -> None:
        super().__init__()
        self.tokens, self.table = nn.Embedding(ROWS, 4), nn.Embedding(2 * STEPS - 1, 2)
        self.gathered = gathered

    def forward(self, x: Tensor) -> Tensor:
        steps = torch.arange(x.shape[1])
        apart = steps[:, None] - steps[None] + STEPS - 1
        flat = apart.flatten()
        bias = (self.table.weight[flat] if self.gathered else self.table(flat)).view(*apart.shape, -1)
        hidden = self.tokens(x)
        scores = (hidden @ hidden.transpose(1, 2))[..., None] + bias
        return scores.softmax(2).square()


class Looked(nn.Module):
    """Rows of a bare table taken in another way than by nn.Embedding."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.table, self.how = nn.Parameter(torch.randn(ROWS, 4)), how

    def forward(self, x: Tensor) -> Tensor:
        ways = {
            "index": lambda: self.table[x],
            "select": lambda: self.table.index_select(0, x.flatten()).view(*x.shape, 4),
            "gather": lambda: self.table.gather(0, x.flatten()[:, None].expand(-1, 4)).view(*x.shape, 4),
            "one hot": lambda: F.one_hot(x, ROWS).double() @ self.table,
            "functional": lambda: F.embedding(x, self.table),
            "take along": lambda: torch.take_along_dim(self.table, x.flatten()[:, None], 0).view(*x.shape, 4),
        }
        return ways[self.how]()


def _embeddings() -> dict[str, Case]:
    cases: dict[str, Case] = {}
    shapes: list[tuple[int, ...]] = [(), (STEPS,), (2, 3), (2, 1, 3)]
    for shape in shapes:
        for padding in (None, 2):
            name = f"Embedding on {1 + len(shape)} axes, padding {padding}"
            cases[name] = indexed(lambda p=padding: nn.Embedding(ROWS, 4, padding_idx=p), ROWS, *shape)
        cases[f"Embedding, Linear on {1 + len(shape)} axes"] = indexed(
            lambda: stack(nn.Embedding(ROWS, 4), nn.Linear(4, 3)), ROWS, *shape
        )
    for axis in (1, 2):
        cases[f"Embedding, samples on axis {axis}"] = indexed(lambda: nn.Embedding(ROWS, 4), ROWS, 2, 3, axis=axis)
    cases["Embedding, long"] = indexed(lambda: nn.Embedding(ROWS, 2), ROWS, 60)
    for how in ("index", "select", "gather", "one hot", "functional", "take along"):
        cases[f"table, {how}"] = indexed(lambda how=how: Looked(how), ROWS, STEPS)
    for axes in (1, 2):
        cases[f"positions on {axes} axes"] = indexed(lambda axes=axes: Positions(axes), ROWS, STEPS)
        for step in (0, 2, -1):
            cases[f"positions on {axes} axes, step {step}"] = _at(lambda axes=axes: Positions(axes), step)
    for gathered in (True, False):
        cases[f"relative positions, {options(gathered=gathered)}"] = indexed(
            lambda g=gathered: Relative(g), ROWS, STEPS
        )
    return cases


def _at(make: Any, step: int) -> Case:
    def case(n: int) -> tuple[nn.Module, Losses]:
        model = make().double()
        x = torch.randint(ROWS, (n, STEPS))
        return model, lambda: bowl(model(x)[:, step])

    return case


class Bag(nn.Module):
    """nn.EmbeddingBag on (n, t) or on a ragged list with offsets; weights are data or a parameter of each row."""

    def __init__(self, ragged: bool = False, weights: str | None = None, **options: Any) -> None:
        super().__init__()
        self.bag = nn.EmbeddingBag(ROWS, 4, **options)
        self.mix = nn.Linear(4, 3)
        self.ragged, self.weights = ragged, weights
        self.learned = nn.Parameter(torch.randn(ROWS)) if weights == "learned" else None

    def forward(self, x: Tensor) -> Tensor:
        offsets = None
        if self.ragged:
            sizes = torch.tensor([1 + (k * 2) % STEPS for k in range(len(x))])
            offsets = F.pad(sizes.cumsum(0), (1, 0))
            offsets = offsets if self.bag.include_last_offset else offsets[:-1]
            x = torch.cat([row[:size] for row, size in zip(x, sizes.tolist(), strict=True)])
        weights = {None: None, "data": torch.linspace(0.5, 2.0, x.numel()).double().view(x.shape)}.get(self.weights)
        if self.learned is not None:
            weights = self.learned[x]
        return self.mix(self.bag(x, offsets, weights))


def _bags() -> dict[str, Case]:
    cases: dict[str, Case] = {}
    for ragged in (False, True):
        for mode in ("sum", "mean", "max"):
            for padding in (None, 2):
                name = f"EmbeddingBag, {mode}, {options(ragged=ragged)}, padding {padding}"
                cases[name] = indexed(lambda r=ragged, m=mode, p=padding: Bag(r, mode=m, padding_idx=p), ROWS, STEPS)
        for weights in ("data", "learned"):
            cases[f"EmbeddingBag, {weights} weights, {options(ragged=ragged)}"] = indexed(
                lambda r=ragged, w=weights: Bag(r, w, mode="sum"), ROWS, STEPS
            )
    cases["EmbeddingBag, last offset"] = indexed(lambda: Bag(True, mode="mean", include_last_offset=True), ROWS, STEPS)
    return cases


CASES: dict[str, Case] = _embeddings() | _bags()
