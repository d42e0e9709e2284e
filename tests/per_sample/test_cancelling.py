"""Gradients in which positions nearly cancel: a Gram form would lose them to rounding."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

from clipbench.per_sample import PerSampleClipper, total
from tests.reference.from_graph import sample_gradients_of

BOUNDS = {torch.float32: 5e-3, torch.float64: 1e-10}
CANCELLING: dict[str, Callable[[], tuple[nn.Module, Tensor]]] = {}


def cancelling(make: Callable[[], tuple[nn.Module, Tensor]]) -> Callable[[], tuple[nn.Module, Tensor]]:
    """A model and losses whose gradients nearly cancel over positions."""
    CANCELLING[make.__name__.replace("_", " ")] = make
    return make


def apart(*shape: int, by: float = 1e-4) -> Tensor:
    """(3, 2, *shape): the second position is the first but for a little."""
    first = torch.randn(3, 1, *shape)
    return torch.cat([first, first + by * torch.randn(3, 1, *shape)], 1)


def against(out: Tensor) -> Tensor:
    """Losses with opposite gradients at two positions (n, 2, …)."""
    d = torch.randn(3, 1, *out.shape[2:])
    return (out * torch.cat([d, -d], 1)).flatten(1).sum(1)


@cancelling
def a_linear_layer() -> tuple[nn.Module, Tensor]:
    layer = nn.Linear(64, 64, bias=False)
    return layer, against(layer(apart(64)))


@cancelling
def a_convolution() -> tuple[nn.Module, Tensor]:
    layer = nn.Conv1d(64, 64, 1, bias=False)
    return layer, against(layer(apart(64).transpose(1, 2)).transpose(1, 2))


@cancelling
def a_bilinear_layer() -> tuple[nn.Module, Tensor]:
    layer = nn.Bilinear(16, 16, 16, bias=False)
    return layer, against(layer(apart(16), torch.randn(3, 1, 16).expand(3, 2, 16).contiguous()))


@cancelling
def one_layer_called_twice() -> tuple[nn.Module, Tensor]:
    layer = nn.Linear(64, 64, bias=False)
    x = apart(64)
    return layer, against(torch.stack([layer(x[:, 0]), layer(x[:, 1])], 1))


@cancelling
def an_embedding() -> tuple[nn.Module, Tensor]:
    """Both positions look up one row."""
    table = nn.Embedding(50, 8)
    d = torch.randn(3, 1, 8)
    out = table(torch.tensor([[1, 1], [2, 2], [3, 3]]))
    return table, (out * torch.cat([d, -d * (1 + 1e-4)], 1)).sum((1, 2))


@cancelling
def a_tied_table() -> tuple[nn.Module, Tensor]:
    """A row's gradient as a lookup against that as an output's weight."""
    table = nn.Embedding(50, 8)
    x = torch.randn(3, 8)
    rows = torch.tensor([4, 5, 6])
    logits = nn.functional.linear(x, table.weight)[torch.arange(3), rows]
    return table, logits - (table(rows) * (x + 1e-4 * torch.randn(3, 8))).sum(1)


@pytest.fixture(params=[torch.float32, torch.float64])
def dtype(request: pytest.FixtureRequest) -> Iterator[torch.dtype]:
    """That of all that is made in a test."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(request.param)
    yield request.param
    torch.set_default_dtype(before)


@pytest.mark.parametrize("name", CANCELLING)
@pytest.mark.parametrize("blind", [False, True])
def test_positions_that_cancel(name: str, blind: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """In float64, too, where squares lose twice as many digits, and there is nothing wider."""
    if blind:
        monkeypatch.setattr(total, "readable", lambda tensor: False)
    for seed in range(5):
        torch.manual_seed(seed)
        model, losses = CANCELLING[name]()
        rows = sample_gradients_of(losses, model)
        norms = PerSampleClipper(model, 1.0).norms(losses)
        assert ((norms.double() - rows.norm(dim=1)).abs() / rows.norm(dim=1)).max() < BOUNDS[dtype]
