"""Losses that mix samples are refused; layers that take constants are not, however many rows these have."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clipbench.per_sample import PerSampleClipper, fallback
from tests.per_sample.ragged import error, squares

BOUND = 1e-11
POINTS = 4
WIDTH = 3
Net = nn.Module
CONSTANTS = torch.linspace(-1.0, 1.0, POINTS * WIDTH).double().view(POINTS, WIDTH).sin()
IMAGES = torch.linspace(-1.0, 1.0, POINTS * 50).double().view(POINTS, 2, 5, 5).sin()


def _network() -> nn.Module:
    return nn.Sequential(nn.Linear(WIDTH, 5), nn.Tanh(), nn.Linear(5, 2))


def _data(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


SHARED: dict[str, tuple[Callable[[], Net], Callable[[Net, int], Tensor]]] = {
    "a field of points": (_network, lambda net, n: (net(CONSTANTS) - _data(n, POINTS, 2)).square().sum((1, 2))),
    "a field, expanded": (
        _network,
        lambda net, n: (net(CONSTANTS).expand(n, POINTS, 2) - _data(n, POINTS, 2)).square().sum((1, 2)),
    ),
    "a matrix": (_network, lambda net, n: squares(_data(n, POINTS) @ net(CONSTANTS))),
    "names of classes": (
        _network,
        lambda net, n: F.cross_entropy(
            F.normalize(_data(n, 2), dim=1) @ F.normalize(net(CONSTANTS), dim=1).t(),
            torch.arange(n) % POINTS,
            reduction="none",
        ),
    ),
    "a table": (_network, lambda net, n: squares(net(CONSTANTS)[torch.randint(POINTS, (n, 6))])),
    "centres": (_network, lambda net, n: squares(torch.cdist(_data(n, 2), net(CONSTANTS)))),
    "two numbers": (_network, lambda net, n: squares(_data(n, 2) * net(CONSTANTS).mean(0))),
    "weights of another network": (
        lambda: nn.Linear(WIDTH, 12),
        lambda net, n: squares(torch.einsum("ni,ijk->njk", _data(n, POINTS), net(CONSTANTS).view(POINTS, 3, 4))),
    ),
    "an image from noise": (
        lambda: nn.Sequential(nn.Conv2d(2, 3, 3), nn.Tanh(), nn.Conv2d(3, 1, 1)),
        lambda net, n: (net(IMAGES).mean(0) - _data(n, 1, 3, 3)).square().sum((1, 2, 3)),
    ),
}


@pytest.mark.parametrize("name", SHARED)
def test_constants_of_as_many_rows_as_samples(name: str) -> None:
    torch.manual_seed(0)
    build, losses = SHARED[name]
    model = build().double()
    clipper = PerSampleClipper(model, 1.0)
    for n in (POINTS, POINTS, 2, 3):
        assert error(clipper, model, losses(model, n)) < BOUND


@pytest.mark.filterwarnings("error:no per-sample rule")
@pytest.mark.parametrize("by", ["asking", "another network", "points that ask"])
@pytest.mark.parametrize("name", ["field", "names of classes"])
def test_data_with_gradients_of_other_things(name: str, by: str) -> None:
    """What has a gradient, but of nothing in the model, is data."""
    torch.manual_seed(0)
    net, other = _network().double(), nn.Linear(2, 2).double()
    clipper = PerSampleClipper(net, 1.0)
    for n in (POINTS, POINTS, 2, 3):
        x = _data(n, POINTS, 2)
        x = other(x) if by == "another network" else x.requires_grad_(by == "asking")
        points = net(CONSTANTS.clone().requires_grad_(by == "points that ask"))
        if name == "field":
            losses = (points - x).square().sum((1, 2))
        else:
            scores = F.normalize(x[:, 0], dim=1) @ F.normalize(points, dim=1).t()
            losses = F.cross_entropy(scores, torch.arange(n) % POINTS, reduction="none")
        assert error(clipper, net, losses) < BOUND


def _two_views(net: Net, n: int) -> Tensor:
    views = F.normalize(net(torch.cat([_data(n, WIDTH), _data(n, WIDTH)])), dim=1)
    scores = (2 * views @ views.t()).masked_fill(torch.eye(2 * n, dtype=torch.bool), -1e9)
    return F.cross_entropy(scores, (torch.arange(2 * n) + n) % (2 * n), reduction="none").view(2, n).mean(0)


def _by_label(net: Net, n: int) -> Tensor:
    rows = F.normalize(net(_data(n, WIDTH)), dim=1)
    scores = rows @ rows.t() - 1e9 * torch.eye(n).double()
    same = (torch.arange(n)[:, None] % 2 == torch.arange(n) % 2).double()
    return -(scores.log_softmax(1) * same).sum(1)


def _others_near(net: Net, n: int) -> Tensor:
    rows = net(_data(n, WIDTH))
    return squares(rows - rows[torch.arange(n).roll(1)])


def _both_ways(net: Net, n: int) -> Tensor:
    first, second = net[0](_data(n, WIDTH)), net(_data(n, WIDTH)).repeat(1, 3)[:, :5]
    labels = torch.arange(n)
    return F.cross_entropy(first @ second.t(), labels, reduction="none") + F.cross_entropy(
        second @ first.t(), labels, reduction="none"
    )


MIXED: dict[str, Callable[[Net, int], Tensor]] = {
    "two views": _two_views,
    "by label": _by_label,
    "pairs, both ways": _both_ways,
    "other samples": _others_near,
    "batch statistics": lambda net, n: (lambda h: squares(h) + (1 - h.std(0)).relu().mean())(net(_data(n, WIDTH))),
    "distances": lambda net, n: (lambda h: torch.cdist(h, h + 1).mean(1))(net(_data(n, WIDTH))),
    "a mean given to each": lambda net, n: squares(net(_data(n, WIDTH))).mean() * torch.ones(n).double(),
    "logarithms of sums": lambda net, n: squares(net(_data(n, WIDTH)).logcumsumexp(0)),
}


@pytest.mark.parametrize("name", MIXED)
def test_losses_that_mix_samples(name: str) -> None:
    """Also when they are tried again."""
    torch.manual_seed(0)
    model = _network().double()
    clipper = PerSampleClipper(model, 1.0)
    for n in (4, 4, 3, 6):
        with pytest.raises(ValueError, match="losses must depend on one sample each"):
            clipper.backward(MIXED[name](model, n))
    assert error(clipper, model, squares(model(_data(4, WIDTH)))) < BOUND


@pytest.mark.filterwarnings("error:no per-sample rule")
def test_operations_that_round_other_numbers_otherwise() -> None:
    """logcumsumexp goes through logarithms of gradients; ever-new lengths are measured."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(WIDTH, 5), nn.LayerNorm(5)).double()
    clipper = PerSampleClipper(model, 1.0)
    for steps in range(2, 12):
        assert error(clipper, model, squares(model(_data(4, steps, WIDTH)).logcumsumexp(1))) < BOUND


class _Buffered(nn.Module):
    """Experts that get a buffer of `room` tokens each, all in one batched product."""

    def __init__(self, experts: int, room: int) -> None:
        super().__init__()
        self.gate, self.room = nn.Linear(WIDTH, experts), room
        self.first = nn.Parameter(torch.randn(experts, WIDTH, 5))
        self.bias = nn.Parameter(torch.randn(experts, 1, 5))
        self.second = nn.Parameter(torch.randn(experts, 5, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(0, 1)
        weight, expert = self.gate(tokens).softmax(1).max(1)
        chosen = F.one_hot(expert, len(self.first))
        place = ((chosen.cumsum(0) - 1) * chosen).sum(1)
        kept = place < self.room
        where = expert[kept], place[kept]
        buffer = x.new_zeros(len(self.first), self.room, WIDTH)
        buffer = buffer.index_put(where, tokens[kept] * weight[kept, None])
        out = torch.bmm((torch.bmm(buffer, self.first) + self.bias).relu(), self.second)
        return squares((tokens.index_put((kept,), out[where])).view_as(x))


@pytest.mark.filterwarnings("error:no per-sample rule")
@pytest.mark.parametrize("experts", [2, 3, 4])
def test_experts_side_by_side(experts: int) -> None:
    """At one place of the buffers every expert has a token of another sample."""
    torch.manual_seed(0)
    model = _Buffered(experts, 6).double()
    clipper = PerSampleClipper(model, 1.0)
    for n in (4, 4, 3, 2):
        assert error(clipper, model, model(_data(n, 5, WIDTH))) < BOUND


@pytest.mark.filterwarnings("ignore:no per-sample rule", "ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("layout", [torch.strided, torch.jagged])
@pytest.mark.parametrize("kept", [True, False])
def test_nested_tensors(layout: torch.layout, kept: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the slow path, whether there is room for the samples' gradients or not."""
    if not kept:
        monkeypatch.setattr(fallback, "SUBGRAPH_BYTES", 0)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(WIDTH, 5), nn.LayerNorm(5)).double()
    clipper = PerSampleClipper(model, 1.0)
    for n in (4, 4, 3):
        parts = [_data(2 + k, WIDTH) for k in range(n)]
        nested = torch.nested.nested_tensor(parts, layout=layout)
        out = model(nested) if layout is torch.jagged else model[0](nested)
        assert error(clipper, model, squares(torch.nested.to_padded_tensor(out, 0.0))) < BOUND


def test_data_in_sparse_rows() -> None:
    torch.manual_seed(0)
    model = nn.ParameterList([nn.Parameter(_data(9, 4)), nn.Parameter(_data(9))])
    clipper = PerSampleClipper(model, 1.0)
    for n in (4, 4, 3):
        with warnings.catch_warnings(action="ignore"):  # of what is new in torch
            x = (_data(n, 9).relu()).to_sparse_csr()
        assert (
            error(clipper, model, squares(x @ model[0]) + squares((x.to_dense().to_sparse() @ model[1])[:, None]))
            < BOUND
        )
