"""BatchNorm in training with frozen statistics: against a twin by hand, and torch's own but for the gradients."""

from __future__ import annotations

import copy
import pickle
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from clipbench import PerSampleClipper, freeze_batch_statistics
from tests.per_sample.common import flat_gradient, square_loss
from tests.reference.frozen import HandNorm
from tests.reference.per_sample import clipped_mean

SHAPES: dict[str, tuple[Any, tuple[int, ...]]] = {
    "rows": (nn.BatchNorm1d, (6, 3)),
    "1d": (nn.BatchNorm1d, (6, 3, 5)),
    "2d": (nn.BatchNorm2d, (6, 3, 4, 5)),
    "3d": (nn.BatchNorm3d, (6, 3, 2, 3, 4)),
}
OPTIONS: dict[str, dict[str, Any]] = {
    "default": {},
    "no running statistics": {"track_running_stats": False},
    "mean over batches": {"momentum": None},
    "other numbers": {"momentum": 0.7, "eps": 0.3},
    "without weights": {"affine": False},
}


def network(shape: str, **options: Any) -> tuple[nn.Sequential, Tensor]:
    """Something that learns below and above each of two norms, and its input."""
    torch.manual_seed(0)
    norm, size = SHAPES[shape]
    mixed: Any = {2: nn.Linear, 3: nn.Conv1d, 4: nn.Conv2d, 5: nn.Conv3d}[len(size)]
    more = () if len(size) == 2 else (1,)
    net = nn.Sequential(
        mixed(3, 4, *more), norm(4, **options), nn.Tanh(), mixed(4, 3, *more), norm(3, **options), nn.Flatten()
    ).double()
    for layer in (net[1], net[4]):
        if layer.weight is not None:
            nn.init.uniform_(layer.weight, 0.5, 1.5)
            nn.init.uniform_(layer.bias)
    return net, torch.randn(size, dtype=torch.float64) + 0.5


def by_hand(net: nn.Sequential) -> nn.Sequential:
    """A copy of a network with both norms written out."""
    twin = copy.deepcopy(net)
    twin[1], twin[4] = HandNorm(twin[1]), HandNorm(twin[4])
    return twin


def rows(twin: nn.Module, x: Tensor) -> Tensor:
    """Every sample's gradient, by one backward pass each through one forward of the whole batch."""
    losses = square_loss(twin, x)
    params = list(twin.parameters())
    return torch.stack(
        [torch.cat([g.flatten() for g in torch.autograd.grad(one, params, retain_graph=True)]) for one in losses]
    )


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("shape", SHAPES)
def test_equals_n_backward_passes_by_hand(shape: str, options: str) -> None:
    net, x = network(shape, **OPTIONS[options])
    twin = by_hand(net)
    clipper = PerSampleClipper(net, 1.0, batch_norm="frozen")
    for step in range(3):  # the later ones find what is known of the graph
        wanted = rows(twin, x + step)
        tau = float(wanted.norm(dim=1).median())
        clipper.threshold = tau
        net.zero_grad()
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # it must not be slow
            stats = clipper.backward(square_loss(net, x + step))
        torch.testing.assert_close(stats.norms, wanted.norm(dim=1), rtol=1e-10, atol=0)
        clipped = clipped_mean(wanted, torch.full((6,), tau, dtype=torch.float64))
        assert (flat_gradient(net) - clipped).abs().max() <= 1e-10 * clipped.abs().max()
    for layer, hand in ((net[1], twin[1]), (net[4], twin[4])):
        if layer.running_mean is None:
            assert hand.running is None
            continue
        assert int(layer.num_batches_tracked) == 3
        for found, kept in zip((layer.running_mean, layer.running_var), hand.running, strict=True):
            torch.testing.assert_close(found, torch.tensor(kept, dtype=torch.float64), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("shape", SHAPES)
def test_only_gradients_differ_from_torch(shape: str, options: str) -> None:
    plain, x = network(shape, **OPTIONS[options])
    frozen = copy.deepcopy(plain)
    keys = list(frozen.state_dict())
    freeze_batch_statistics(frozen)
    assert list(frozen.state_dict()) == keys
    assert [type(layer) for layer in frozen.modules()] == [type(layer) for layer in plain.modules()]
    for part in (x, 3 * x, x[:2]):
        torch.testing.assert_close(frozen(part), plain(part), rtol=1e-12, atol=1e-12)
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(frozen.state_dict()[name], value, rtol=1e-12, atol=1e-12)
    frozen.load_state_dict(plain.state_dict())
    found, wanted = frozen.eval()(x), plain.eval()(x)
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)
    assert torch.equal(found, wanted) or "track_running_stats" in OPTIONS[options]


def test_the_gradient_is_the_one_that_the_docstring_names() -> None:
    layer = nn.BatchNorm1d(3).double()
    nn.init.uniform_(layer.weight, 0.5, 1.5)
    x = torch.randn(6, 3, dtype=torch.float64, requires_grad=True)
    delta = torch.randn(6, 3, dtype=torch.float64)
    (plain,) = torch.autograd.grad(layer(x), x, delta)
    with freeze_batch_statistics(layer):
        (frozen,) = torch.autograd.grad(layer(x), x, delta)
    (again,) = torch.autograd.grad(layer(x), x, delta)
    assert torch.equal(again, plain)
    sigma = (x.detach().var(0, correction=0) + layer.eps).sqrt()
    hat = (x.detach() - x.detach().mean(0)) / sigma
    weight = layer.weight.detach()
    torch.testing.assert_close(frozen, weight / sigma * delta)
    torch.testing.assert_close(plain, weight / sigma * (delta - delta.mean(0) - hat * (delta * hat).mean(0)))


def test_a_clipper_freezes_until_it_is_closed() -> None:
    net, x = network("2d")
    with pytest.raises(ValueError, match="batch_norm must be 'refuse' or 'frozen', got True"):
        PerSampleClipper(net, 1.0, batch_norm=True)  # type: ignore[arg-type]
    plain = PerSampleClipper(net, 1.0)
    with pytest.raises(ValueError, match=r"BatchNorm2d '1' in training mode.*batch_norm='frozen'"):
        plain.backward(square_loss(net, x))
    with PerSampleClipper(net, 1.0, batch_norm="frozen", verify=True) as clipper:
        clipper.backward(square_loss(net, x))
        plain.norms(square_loss(net, x))
    assert "forward" not in vars(net[1])
    with pytest.raises(ValueError, match="in training mode"):
        plain.backward(square_loss(net, x))


def test_a_block_leaves_what_others_froze() -> None:
    net, x = network("rows")
    outer = freeze_batch_statistics(net)
    with freeze_batch_statistics(net) as inner:
        pass
    inner.remove()
    PerSampleClipper(net, 1.0).backward(square_loss(net, x))
    outer.remove()
    with pytest.raises(ValueError, match="in training mode"):
        PerSampleClipper(net, 1.0).backward(square_loss(net, x))


def test_copies_have_statistics_of_their_own() -> None:
    net, x = network("rows")
    freeze_batch_statistics(net)
    for twin in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        before = net[1].running_mean.clone()
        twin(x)
        assert torch.equal(net[1].running_mean, before)
        assert not torch.equal(twin[1].running_mean, before)
        PerSampleClipper(twin, 1.0).backward(square_loss(twin, x))


@pytest.mark.parametrize("options", OPTIONS)
def test_it_never_waits_for_the_device(options: str) -> None:
    """Tensors without values raise where one is read."""
    with FakeTensorMode():
        layer = nn.BatchNorm2d(3, **OPTIONS[options])
        with freeze_batch_statistics(layer):
            assert layer(torch.ones(4, 3, 5, 5)).shape == (4, 3, 5, 5)


def test_half_precision_keeps_statistics_in_float32() -> None:
    layer, x = nn.BatchNorm2d(3), torch.randn(4, 3, 5, 5) * 3 + 40
    plain = copy.deepcopy(layer)
    with freeze_batch_statistics(layer):
        found, wanted = layer(x.bfloat16()), plain(x.bfloat16())
    assert found.dtype == wanted.dtype == torch.bfloat16
    torch.testing.assert_close(found, wanted, rtol=2e-2, atol=2e-2)
    torch.testing.assert_close(layer.running_var, plain.running_var, rtol=1e-4, atol=0)
    assert layer.running_mean is not None
    assert layer.running_mean.dtype == torch.float32


def test_what_cannot_be_frozen() -> None:
    class Fused(nn.BatchNorm2d):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).relu()

    for layer in (Fused(3), nn.SyncBatchNorm(3)):
        with pytest.raises(ValueError, match=rf"torch's own forward .* got {type(layer).__name__} '1'"):
            freeze_batch_statistics(nn.Sequential(nn.BatchNorm2d(3), layer))
    norm = nn.BatchNorm1d(3)
    with freeze_batch_statistics(norm):
        with pytest.raises(ValueError, match="more than 1 value per channel"):
            norm(torch.ones(1, 3))
        with pytest.raises(ValueError, match="2D or 3D"):
            norm(torch.ones(2, 3, 1, 1))
