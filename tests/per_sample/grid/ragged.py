"""Rows laid out by the data: routed, masked, gathered, packed, flipped; and rows that lie unevenly."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.per_sample.grid.base import STEPS, Case, Losses, bowl, lengths, stack

Net = nn.ModuleList


def case(make: Callable[[], nn.Module], losses: Callable[[nn.Module, int, Tensor], Tensor]) -> Case:
    """losses(model, n, x) with x (n, STEPS, 4)."""

    def build(n: int) -> tuple[nn.Module, Losses]:
        model = make().double()
        x = torch.randn(n, STEPS, 4).double()
        return model, lambda: losses(model, n, x)

    return build


def per_sample(values: Tensor, owner: Tensor, n: int) -> Tensor:
    """Sums of (rows,) over the rows of each of n samples."""
    return values.new_zeros(n).index_add(0, owner, values)


def rows_of(n: int, sizes: Tensor) -> Tensor:
    """The sample of every row where sample k has sizes[k] of them."""
    return torch.arange(n).repeat_interleave(sizes)


def uneven(model: nn.Module, n: int, x: Tensor) -> Tensor:
    """Sample k has 1 + k mod 3 rows, all in one product."""
    owner = rows_of(n, torch.arange(n) % 3 + 1)
    return per_sample(model(x[owner, 0] * (1 + torch.arange(len(owner))[:, None])).square().sum(1), owner, n)


def even_in_number(model: nn.Module, n: int, x: Tensor) -> Tensor:
    """As many rows as two a sample, of which the last sample has one and the first the rest."""
    sizes = torch.full((n,), 2)
    sizes[0] += 1
    sizes[-1] -= 1
    owner = rows_of(n, sizes)
    return per_sample(model(x[owner, 0]).square().sum(1), owner, n)


def unordered(model: nn.Module, n: int, x: Tensor) -> Tensor:
    """Rows in no order."""
    owner = torch.arange(2 * n) * 3 % n
    return per_sample(model(x[owner, torch.arange(2 * n) % STEPS]).square().sum(1), owner, n)


def masked(model: nn.Module, n: int, x: Tensor) -> Tensor:
    """A head on the masked tokens of each sample alone."""
    mask = torch.arange(STEPS) < lengths(n)[:, None]
    owner = mask.nonzero()[:, 0]
    return per_sample(model[1](torch.tanh(model[0](x))[mask]).square().sum(1), owner, n)


def experts(model: nn.Module, n: int, x: Tensor) -> Tensor:
    """Tokens go to the expert that a router chooses, with its probability."""
    flat = torch.tanh(model[0](x)).flatten(0, 1)
    share = model[1](flat).softmax(1)
    best = share.argmax(1)
    out = torch.zeros_like(flat)
    for place, expert in enumerate(model[2:]):
        rows = (best == place).nonzero()[:, 0]
        out = out.index_add(0, rows, expert(flat[rows]) * share[rows, place, None])
    return bowl(out.unflatten(0, (n, STEPS)))


def graph(model: nn.Module, n: int, x: Tensor) -> Tensor:
    """A batch of graphs as one: messages along edges, a sum over each graph's nodes."""
    sizes = torch.arange(n) % 3 + 2
    owner = rows_of(n, sizes)
    first = (sizes.cumsum(0) - sizes)[owner]
    place = torch.arange(len(owner))
    to = first + (place - first + 1) % sizes[owner]
    node = x[owner, place % STEPS]
    for layer in model[:2]:
        node = torch.tanh(node + torch.zeros_like(node).index_add(0, to, layer(node)))
    pooled = node.new_zeros(n, 4).index_add(0, owner, node)
    return bowl(model[2](pooled))


def flipped(model: nn.Module, n: int, x: Tensor) -> Tensor:
    """Two samples mixed below: a loss sees its own rows and another's. Defined, since a loss has one gradient."""
    hidden = torch.tanh(model[0](x[:, 0]))
    mixed = 0.7 * hidden + 0.3 * hidden.flip(0)
    return bowl(model[1](mixed))


def rolled(model: nn.Module, n: int, x: Tensor) -> Tensor:
    """Rows change places between two layers."""
    return bowl(model[1](torch.tanh(model[0](x[:, 0])).roll(1, 0)))


def sorted_by_length(model: nn.Module, n: int, x: Tensor) -> Tensor:
    """Samples sorted for a layer, and back."""
    order = lengths(n).argsort(descending=True, stable=True)
    hidden = torch.tanh(model[0](x[order]))
    return bowl(model[1](hidden[order.argsort()].mean(1)))


def crops(model: nn.Module, n: int, x: Tensor) -> Tensor:
    """Two views of each sample, one after the other in one batch."""
    both = model(torch.cat([x[:, 0], x[:, 1]]))
    first, second = both.chunk(2)
    return (first - second).square().sum(1) + bowl(first)


def folded(model: nn.Module, n: int, x: Tensor) -> Tensor:
    """Steps folded into the batch, every one with a loss, some without."""
    out = model(x.flatten(0, 1)).unflatten(0, (n, STEPS))
    return (out.square().sum(2) * (torch.arange(STEPS) < lengths(n)[:, None])).sum(1)


def scattered(model: nn.Module, n: int, x: Tensor) -> Tensor:
    """Two thirds of the rows at even places, scattered among zeros."""
    hidden = torch.tanh(model[0](x.flatten(0, 1)[::2]))
    full = hidden.new_zeros(n * STEPS, 4).index_copy(0, torch.arange(0, n * STEPS, 2), hidden)
    return bowl(model[1](full.unflatten(0, (n, STEPS)).mean(1)))


def adaptive(model: nn.Module, n: int, x: Tensor) -> Tensor:
    """nn.AdaptiveLogSoftmaxWithLoss, whose clusters see the rows of their targets only."""
    target = torch.arange(n * STEPS) * 7 % 12
    out, _ = model[1](torch.tanh(model[0](x.flatten(0, 1))), target)
    return -out.view(n, STEPS).mean(1)


def jagged(model: nn.Module, n: int, x: Tensor) -> Tensor:
    """A list of sequences of several lengths, in one concatenated product, and a softmax over each."""
    sizes = lengths(n)
    flat = torch.cat([row[:size] for row, size in zip(x, sizes.tolist(), strict=True)])
    scores = model[1](torch.tanh(model[0](flat)))[:, 0]
    return torch.stack([part.softmax(0).square().sum() + part.sum() for part in scores.split(sizes.tolist())])


def one_reading_nothing(model: nn.Module, n: int, x: Tensor) -> Tensor:
    """The first sample does not read the layer at all."""
    rest = model(x[1:, 0]).square().sum(1)
    return torch.cat([x[:1, 0].sum(1), rest])


def picked(model: nn.Module, n: int, x: Tensor) -> Tensor:
    """Every sample looks at one place of a table of parameters' products with all samples' common input."""
    common = model(torch.linspace(-1, 1, 4 * STEPS).double().view(STEPS, 4))
    return (common[torch.arange(n) % STEPS] * x[:, 0, :3]).sum(1)


def _net(*sizes: int) -> Callable[[], nn.Module]:
    return lambda: Net([nn.Linear(a, b) for a, b in zip(sizes[::2], sizes[1::2], strict=True)])


CASES: dict[str, Case] = {
    "rows laid out unevenly": case(lambda: nn.Linear(4, 3), uneven),
    "rows even in number only": case(lambda: nn.Linear(4, 3, bias=False), even_in_number),
    "rows in no order": case(lambda: nn.Linear(4, 3), unordered),
    "masked tokens": case(_net(4, 5, 5, 3), masked),
    "mixture of experts": case(_net(4, 4, 4, 3, 4, 4, 4, 4, 4, 4), experts),
    "graphs": case(_net(4, 4, 4, 4, 4, 2), graph),
    "mixed with the flipped batch": case(_net(4, 5, 5, 3), flipped),
    "rolled": case(_net(4, 5, 5, 3), rolled),
    "sorted by length": case(_net(4, 5, 5, 3), sorted_by_length),
    "two views": case(lambda: stack(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)), crops),
    "steps folded into the batch": case(lambda: stack(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)), folded),
    "scattered": case(_net(4, 4, 4, 2), scattered),
    "adaptive softmax": case(
        lambda: Net([nn.Linear(4, 8), nn.AdaptiveLogSoftmaxWithLoss(8, 12, [4, 8], div_value=2.0)]), adaptive
    ),
    "concatenated sequences": case(_net(4, 5, 5, 1), jagged),
    "a sample that reads nothing": case(lambda: nn.Linear(4, 3), one_reading_nothing),
    "one common product": case(lambda: nn.Linear(4, 3), picked),
    "layer norm on masked rows": case(lambda: Net([nn.LayerNorm(4), nn.Linear(4, 3)]), masked),
}


class Spectrum(nn.Module):
    """A complex filter of each frequency."""

    def __init__(self, steps: bool) -> None:
        super().__init__()
        shape = (STEPS, 3) if steps else (3,)
        self.filter = nn.Parameter(torch.randn(*shape, dtype=torch.complex128))

    def forward(self, x: Tensor) -> Tensor:
        return torch.fft.irfft(torch.fft.rfft(x) * self.filter, n=4)


CASES["complex filter"] = case(lambda: Spectrum(False), lambda m, n, x: bowl(m(x)))
CASES["complex filter by steps"] = case(lambda: Spectrum(True), lambda m, n, x: bowl(m(x)))
CASES["complex filter on vectors"] = case(lambda: Spectrum(False), lambda m, n, x: bowl(m(x[:, 0])))
CASES["complex linear"] = case(
    lambda: nn.Linear(4, 3, dtype=torch.complex128), lambda m, n, x: bowl(m(torch.complex(x, x.flip(1))))
)
CASES["view as complex"] = case(
    lambda: nn.Linear(4, 4),
    lambda m, n, x: bowl(torch.view_as_complex(m(x).unflatten(2, (2, 2)).contiguous())),
)
CASES["nothing but functions"] = case(
    lambda: nn.Linear(4, 3), lambda m, n, x: F.linear(x, m.weight, m.bias)[:, -1].sum(1)
)
