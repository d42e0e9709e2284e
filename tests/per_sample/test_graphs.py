"""Beside the user's own training code: plain backward, several graphs, memory, dropout, autocast, checkpoints."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from clipbench.data.base import Spec
from clipbench.models import AlexNet
from clipbench.per_sample import PerSampleClipper, graph
from tests.per_sample.common import flat_gradient, square_loss
from tests.reference.per_sample import clipped_mean, sample_gradients


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(27, 4)).double()


@pytest.fixture
def x() -> Tensor:
    torch.manual_seed(1)
    return torch.randn(6, 2, 5, 5).double()


def clipped(model: nn.Module, x: Tensor) -> Tensor:
    return clipped_mean(sample_gradients(model, square_loss, x), torch.full((len(x),), 0.5))


def test_plain_backward_stays_what_it_was(model: nn.Module, x: Tensor) -> None:
    square_loss(model, x).mean().backward()
    plain = flat_gradient(model)
    with PerSampleClipper(model, 0.5) as clipper:
        model.zero_grad()
        clipper.backward(square_loss(model, x))
        model.zero_grad()
        square_loss(model, x).mean().backward()
        assert torch.equal(flat_gradient(model), plain)
    assert not model[0]._forward_hooks
    assert not model[0]._backward_hooks


def test_two_forwards_before_a_backward_do_not_mix(model: nn.Module, x: Tensor) -> None:
    clipper = PerSampleClipper(model, 0.5)
    first, second = square_loss(model, x[:3]), square_loss(model, x[3:])
    with torch.no_grad():
        square_loss(model, 2 * x)
    square_loss(model, 3 * x)
    clipper.backward(second)
    torch.testing.assert_close(flat_gradient(model), clipped(model, x[3:]))
    model.zero_grad()
    clipper.backward(first)
    torch.testing.assert_close(flat_gradient(model), clipped(model, x[:3]))


def test_two_forwards_in_one_loss_add_up(model: nn.Module, x: Tensor) -> None:
    def twice(net: nn.Module, inputs: Tensor) -> Tensor:
        return square_loss(net, inputs) + square_loss(net, 2 * inputs)

    PerSampleClipper(model, 0.5).backward(twice(model, x))
    rows = sample_gradients(model, twice, x)
    torch.testing.assert_close(flat_gradient(model), clipped_mean(rows, torch.full((6,), 0.5)))


def test_nothing_outlives_the_step(model: nn.Module, x: Tensor) -> None:
    clipper = PerSampleClipper(model, 0.5)
    seen = []

    def watch(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        seen.append(weakref.ref(inputs[0]))

    handle = model[3].register_forward_hook(watch)
    square_loss(model, x)  # a forward without a backward
    clipper.backward(square_loss(model, x))
    clipper.norms(square_loss(model, x))
    handle.remove()
    gc.collect()
    assert len(seen) == 3
    assert all(ref() is None for ref in seen)


def test_the_graph_is_freed_as_by_backward(model: nn.Module, x: Tensor) -> None:
    losses = square_loss(model, x)
    clipper = PerSampleClipper(model, 0.5)
    clipper.backward(losses)
    with pytest.raises(RuntimeError, match=r"second time|already been freed"):
        clipper.backward(losses)


def test_an_input_that_changed_is_noticed(model: nn.Module, x: Tensor) -> None:
    losses = square_loss(model, x)
    x.add_(1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        PerSampleClipper(model, 0.5).backward(losses)


def test_dropout_has_one_mask_for_norm_and_gradient(x: Tensor) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(50, 40), nn.Dropout(0.5), nn.Linear(40, 3)).double()
    torch.manual_seed(7)
    losses = square_loss(net, x)
    rows = []
    for loss in losses.unbind():
        rows.append(
            torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(net.parameters()), retain_graph=True)])
        )
    stats = PerSampleClipper(net, 0.5).backward(losses)
    torch.testing.assert_close(stats.norms, torch.stack(rows).norm(dim=1))
    torch.testing.assert_close(flat_gradient(net), clipped_mean(torch.stack(rows), torch.full((6,), 0.5)))


def test_user_hooks_stay(model: nn.Module, x: Tensor) -> None:
    """A module's backward hook puts nodes of its own into the graph."""
    wanted = clipped(model, x)
    calls = []
    for layer in model:
        layer.register_full_backward_hook(lambda *_: calls.append(1))  # type: ignore[arg-type, func-returns-value]
    clipper = PerSampleClipper(model, 0.5)
    net = nn.Sequential(*[layer for layer in model if not isinstance(layer, nn.ReLU)])
    clipper.norms(square_loss(net, x))
    model[1] = nn.ReLU()  # in place it would refuse the hooks themselves
    clipper.backward(square_loss(model, x))
    assert calls
    torch.testing.assert_close(flat_gradient(model), wanted)


class Blocks(nn.Module):
    """Two checkpointed blocks that count how often they run."""

    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(6, 6), nn.LayerNorm(6), nn.Dropout(0.5)) for _ in range(2))
        self.reentrant = reentrant
        self.runs = 0

    def run(self, block: nn.Module, x: Tensor) -> Tensor:
        self.runs += 1
        return block(x)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = checkpoint(self.run, block, x, use_reentrant=self.reentrant)
        return x


def test_a_checkpointed_block_is_recomputed_once_for_its_inputs_and_once_for_its_gradients() -> None:
    torch.manual_seed(0)
    net, x = Blocks(reentrant=False), torch.randn(4, 6)
    clipper = PerSampleClipper(net, 0.5)
    for _ in range(3):
        net.runs = 0
        norms = clipper.backward(square_loss(net, x)).norms
    assert net.runs == 6
    assert norms.isfinite().all()
    with pytest.raises(ValueError, match="use_reentrant=False"):
        PerSampleClipper(net, 0.5).backward(square_loss(Blocks(reentrant=True), x.requires_grad_()))


DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def small_net() -> nn.Module:
    """Convolutions, a normalisation and linear layers, for images of 8 × 8."""
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.GroupNorm(4, 32),
        nn.Flatten(),
        nn.Linear(32 * 16, 20),
        nn.ReLU(),
        nn.Linear(20, 5),
    )


def alexnet() -> nn.Module:
    """The benchmark's AlexNet, without dropout."""
    net = AlexNet(Spec("image", (3, 32, 32), 100, "random images"))
    return net.eval()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("build", "side"), [(small_net, 8), (alexnet, 32)])
def test_autocast_in_bfloat16(build: Callable[[], nn.Module], side: int, device: str) -> None:
    """Norms in float32; at most twice the error of plain bf16 training (both against float64, whole gradient)."""
    torch.manual_seed(0)
    net = build().to(device)
    x = torch.randn(16, 3, side, side, device=device)

    def losses(net: nn.Module, inputs: Tensor) -> Tensor:
        return F.cross_entropy(net(inputs), inputs.new_ones(len(inputs), dtype=torch.int64), reduction="none")

    rows = sample_gradients(net, losses, x)
    with torch.autocast(device, dtype=torch.bfloat16):
        value = losses(net, x)
    value.mean().backward()
    plain = (flat_gradient(net) - rows.mean(0)).norm()
    net.zero_grad()
    with torch.autocast(device, dtype=torch.bfloat16):
        value = losses(net, x)
    stats = PerSampleClipper(net, float("inf")).backward(value)
    assert stats.norms.dtype is torch.float32
    torch.testing.assert_close(stats.norms.double().cpu(), rows.norm(dim=1), rtol=5e-2, atol=0.0)
    ours = (flat_gradient(net) - rows.mean(0)).norm()
    assert ours <= 2 * plain
    assert ours <= 5e-2 * rows.mean(0).norm()
    assert all(p.grad is not None and p.grad.dtype is torch.float32 for p in net.parameters())


def test_a_graph_like_an_earlier_one_is_not_walked_again(
    model: nn.Module, x: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A walk asks at every node, which costs more than a small model's step."""
    clipper = PerSampleClipper(model, 0.5)
    clipper.norms(square_loss(model, x))
    monkeypatch.setattr(graph, "_Walk", None)
    clipper.backward(square_loss(model, 2 * x))
    torch.testing.assert_close(flat_gradient(model), clipped(model, 2 * x))


@pytest.mark.filterwarnings("error:no per-sample rule")
def test_a_graph_read_as_an_earlier_one_was_is_its_own() -> None:
    """The same operations with other factors, other frozen parameters, another tensor in a parameter's place."""
    torch.manual_seed(0)
    model = nn.ParameterList([nn.Parameter(torch.randn(3, 4).double()), nn.Parameter(torch.randn(4).double())])
    other = torch.randn(3, 4).double().requires_grad_()
    clipper = PerSampleClipper(model, 0.5)
    for alpha in (1.0, 1.0, 2.0, 1.0, -3.0):
        for weight in (model[0], other, model[0]):
            for frozen in (False, True, False):
                model[1].requires_grad_(not frozen)

                def loss(x: Tensor, weight: Tensor = weight, alpha: float = alpha) -> Tensor:
                    out = torch.addmm(model[1], x, weight, alpha=alpha) + alpha * model[0].sum(0)
                    return 0.5 * out.square().sum(1) + out.sum(1)

                x = torch.randn(5, 3).double()
                leaves = [p for p in model if p.requires_grad]
                rows = []
                for value in loss(x):
                    grads = torch.autograd.grad(value, leaves, retain_graph=True, allow_unused=True)
                    rows.append(torch.cat([g.flatten() for g in grads if g is not None]))
                torch.testing.assert_close(clipper.norms(loss(x)), torch.stack(rows).norm(dim=1))
