"""What is kept from step to step must not outlive what it holds for: indices, saved values, hooks, copies, contexts."""

from __future__ import annotations

import copy
import pickle
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint

from clipbench.per_sample import PerSampleClipper, PowerThreshold
from tests.per_sample.common import flat_gradient
from tests.per_sample.leaves import WIDTH, N, parameters, randn
from tests.per_sample.ragged import error, sample_gradients, squares

BOUND = 1e-11


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, 3))


def test_an_index_of_one_axis_then_of_two() -> None:
    """The results have one shape; the second moves rows between samples."""
    net = parameters((WIDTH, 3))
    clipper = PerSampleClipper(net, 1.0)
    for step in range(5):
        rows, places = randn(N, N, WIDTH) @ net[0], torch.randint(0, N, (N, N))
        whose = torch.randperm(N)[:, None].expand(N, N).contiguous()
        out = rows[:, places[0]] if step < 2 else rows[whose, places]
        assert error(clipper, net, squares(out)) < BOUND


@pytest.mark.filterwarnings("ignore:no per-sample rule")
def test_an_index_that_counts_up_along_another_axis() -> None:
    """Then every loss reaches every row: what it is for one layout is not what it is for the other."""
    net = parameters((WIDTH, 3))
    clipper = PerSampleClipper(net, 1.0)
    up = torch.arange(N)
    for step in range(4):
        rows, places = randn(N, N, WIDTH) @ net[0], torch.randint(0, N, (N,))
        out = rows[up[:, None], places[None]] if step < 2 else rows[up[None], places[:, None]]
        assert error(clipper, net, squares(out)) < BOUND


@pytest.mark.parametrize("way", ["plain", "checkpoint", "hooks"])
def test_samples_that_are_in_order_at_first(way: str) -> None:
    """Sorted by length, say: the first batch by chance is. Where saved tensors are packed, nobody sees it change."""
    net = network().double()
    clipper = PerSampleClipper(net, 1.0)
    for step in range(5):
        order, last = torch.arange(N) if step < 2 else torch.randperm(N), torch.randint(0, 6, (N,))

        def forward(x: Tensor, order: Tensor = order, last: Tensor = last) -> Tensor:
            return net[2](net[0](x).tanh()[order, last])  # type: ignore[no-any-return]

        x = randn(N, 6, WIDTH)
        if way == "checkpoint":
            out = checkpoint(forward, x, use_reentrant=False)
        elif way == "hooks":
            with saved_tensors_hooks(lambda tensor: tensor, lambda tensor: tensor):
                out = forward(x)
        else:
            out = forward(x)
        assert error(clipper, net, squares(out)) < BOUND


def test_a_frozen_kernel_of_another_size() -> None:
    """Samples side by side in space; the stride hides from the result how far the kernel reaches."""
    net = parameters((WIDTH, 3))
    clipper = PerSampleClipper(net, 1.0)
    for size in (1, 1, 2, 2):
        rows = (randn(4, WIDTH) @ net[0]).t()[None]
        out = F.conv1d(rows, randn(3, 1, size), stride=2, padding=1, groups=3)[0].t()
        assert error(clipper, net, squares(out)) < BOUND


class _Noisy(torch.autograd.Function):
    """Adds a tensor to the gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, noise: Tensor) -> Tensor:
        ctx.save_for_backward(noise)
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad + ctx.saved_tensors[0], None


@pytest.mark.filterwarnings("ignore:no per-sample rule")
@pytest.mark.parametrize("place", ["rows", "weight"])
def test_what_is_added_to_gradients_may_be_zero_at_first(place: str) -> None:
    net = parameters((WIDTH, WIDTH), (WIDTH, 3))
    clipper = PerSampleClipper(net, 1.0)
    for step in range(4):
        noise = torch.zeros(WIDTH).double() if step < 2 else randn(WIDTH)
        if place == "rows":
            out = _Noisy.apply(randn(N, WIDTH) @ net[0], noise) @ net[1]  # type: ignore[no-untyped-call]
        else:
            out = randn(N, WIDTH) @ _Noisy.apply(net[0], noise) @ net[1]  # type: ignore[no-untyped-call]
        assert error(clipper, net, squares(out)) < BOUND


def test_a_hook_between_derived_tensors_and_parameters_that_comes_later() -> None:
    net = parameters((WIDTH, WIDTH), (WIDTH, WIDTH))
    clipper = PerSampleClipper(net, 1.0)
    for step in range(5):
        weight = net[0] * net[1]
        if step in (2, 4):
            weight.register_hook(lambda grad: grad.clamp(-0.3, 0.3))
        assert error(clipper, net, squares(randn(N, WIDTH) @ weight)) < BOUND


WAYS: dict[str, Callable[[Tensor], Tensor]] = {
    "transposed": lambda p: p.t(),
    "a copy": lambda p: p.clone(),
    "a cast one": lambda p: p.to(torch.complex128).real,
    "cut": lambda p: p[1:],
    "one of several": lambda p: p.chunk(2)[1],
    "a copy of a view": lambda p: p.t().clone(),
}


@pytest.mark.filterwarnings("ignore:no per-sample rule")
@pytest.mark.parametrize("derived", [True, False])
@pytest.mark.parametrize("name", WAYS)
def test_hooks_on_views_and_copies(name: str, derived: bool) -> None:
    """They come and go, at one view or another."""
    net = parameters((WIDTH, WIDTH), (WIDTH, WIDTH))
    clipper = PerSampleClipper(net, 1.0)
    for step in range(5):
        first = WAYS[name](net[0] * net[1] if derived else net[0])
        second = WAYS[name](net[1])
        if step in (1, 4):
            first.register_hook(lambda grad: 2 * grad)
        if step in (3, 4):
            second.register_hook(lambda grad: 3 * grad)
        out = torch.cat([randn(N, len(first)) @ first, randn(N, 2, len(second)).sum(1) @ second], 1)
        assert error(clipper, net, squares(out)) < BOUND


@pytest.mark.filterwarnings("ignore:no per-sample rule")
@pytest.mark.parametrize("layer", [0, 2, 4])
@pytest.mark.parametrize("before", [True, False])
def test_hooks_on_nodes(layer: int, before: bool) -> None:
    """On the node that reads the parameters; what layers are left then changes from step to step, and with it rows."""
    net = network().double()
    clipper = PerSampleClipper(net, 1.0)
    for step in range(6):
        x = randn(N, 6, WIDTH) if step % 2 else randn(6, N, WIDTH)
        handle = None
        for number, part in enumerate(net):
            x = part(x)
            if number == layer and step not in (0, 3):
                node = x.grad_fn.next_functions[0][0] if type(x.grad_fn).__name__ == "ViewBackward0" else x.grad_fn
                handle = node.register_prehook(_tripled) if before else node.register_hook(_tripled)  # type: ignore[union-attr]
        assert error(clipper, net, squares(x if step % 2 else x.transpose(0, 1))) < BOUND
        if handle is not None:
            handle.remove()


def _tripled(gradients: Any, *_: Any) -> Any:
    return tuple(None if grad is None else 3 * grad for grad in gradients)


@pytest.mark.filterwarnings("ignore:no per-sample rule", "ignore:Using a non-full backward hook")
def test_backward_hooks_of_the_old_kind() -> None:
    net = network().double()
    net[2].register_backward_hook(lambda module, below, above: _tripled(below))
    clipper = PerSampleClipper(net, 1.0)
    for _ in range(2):
        assert error(clipper, net, squares(net(randn(N, WIDTH)))) < BOUND


@pytest.mark.filterwarnings("error:no per-sample rule")
def test_full_backward_hooks_take_no_slow_path() -> None:
    net = network().double()
    net[1].register_full_backward_hook(lambda module, below, above: (below[0].clamp(-0.1, 0.1),))
    net[2].register_full_backward_pre_hook(lambda module, above: (3 * above[0],))
    clipper = PerSampleClipper(net, 1.0)
    for _ in range(3):
        assert error(clipper, net, squares(net(randn(N, WIDTH)))) < BOUND


def test_graphs_of_another_thread() -> None:
    """Threads number their nodes each for itself."""
    net = network().double()
    clipper = PerSampleClipper(net, 1.0)
    made: dict[bool, Tensor] = {}

    def forward(hooked: bool) -> None:
        for _ in range(5000 * hooked):
            torch.zeros((), requires_grad=True).neg()
        hidden = net[2](net[0](randn(N, WIDTH)).tanh())
        if hooked:
            hidden.register_hook(lambda grad: 2 * grad)
        made[hooked] = squares(net[4](hidden.tanh()))

    thread = threading.Thread(target=forward, args=(True,))
    thread.start()
    thread.join()
    forward(False)
    for hooked in (False, True):
        assert error(clipper, net, made[hooked]) < BOUND


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda clipper: pickle.loads(pickle.dumps(clipper))])
def test_copies_of_a_clipper_that_has_learnt(copied: Callable[[PerSampleClipper], PerSampleClipper]) -> None:
    net = network().double()
    clipper = PerSampleClipper(net, 1.0)
    for _ in range(2):
        assert error(clipper, net, squares(net(randn(N, WIDTH)))) < BOUND
        clipper.weight = torch.div
        other = copied(clipper)
        assert other.model is not net
        assert error(other, other.model, squares(other.model(randn(N, WIDTH)))) < BOUND


READS: dict[str, Callable[[nn.ParameterList, Tensor], Tensor]] = {
    "a transposed factor": lambda net, x: (x.unsqueeze(2) * net[0].t()).sum(1) @ net[1],
    "a part looked up": lambda net, x: (x @ net[1])[:, :, None] * net[0][:3][torch.tensor([0, 2])].t(),
    "two indices": lambda net, x: x @ net[1] * net[0][torch.tensor([0, 2, 1, 3]), torch.tensor([1, 2, 0, 3])],
    "powers beside a layer": lambda net, x: x @ net[1] + net[0].abs()[0].pow(x.abs()) @ net[1],
}


@pytest.mark.parametrize("name", READS)
def test_checkpointed_tensors_are_handed_out_once(name: str) -> None:
    """To one look at a graph; there may be several, also at a later step."""
    net = parameters((WIDTH, WIDTH), (WIDTH, WIDTH))
    clipper = PerSampleClipper(net, 1.0)
    for n in (3, 3, 3, 5, 5, 2):
        out = checkpoint(lambda x: READS[name](net, x), randn(n, WIDTH), use_reentrant=False)
        assert error(clipper, net, squares(out)) < BOUND


def test_three_parameters_in_one_node_for_one_sample() -> None:
    net = parameters((1, WIDTH), (1, WIDTH), (1, WIDTH))
    clipper = PerSampleClipper(net, 1.0)
    for n in (1, 2, 1):
        assert error(clipper, net, squares(randn(n, WIDTH) * torch.addcmul(net[0], net[1], net[2]))) < BOUND


def test_complex_layers_with_many_more_rows_of_one_sample() -> None:
    torch.manual_seed(0)
    net = nn.ParameterList([nn.Parameter(torch.randn(WIDTH, 3, dtype=torch.complex128))])
    whose = torch.tensor([0] * 20 + [1, 2, 2, 3])
    rows = (torch.randn(24, WIDTH, dtype=torch.complex128) @ net[0]).abs().square().sum(1)
    losses = torch.zeros(4).double().index_add(0, whose, rows)
    assert error(PerSampleClipper(net, 1.0), net, losses) < BOUND


def test_inside_autocast() -> None:
    """Products of the clipper's own are not to be rounded."""
    net = network()
    clipper = PerSampleClipper(net, 1.0)
    for n in (N, N, 3):
        losses = squares(net(torch.randn(n, 6, WIDTH)))
        wanted = sample_gradients(losses, net)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            norms = clipper.norms(losses)
            again = clipper.backward(losses).norms
        torch.testing.assert_close(norms, wanted.norm(dim=1))
        torch.testing.assert_close(again, norms)


def test_under_another_default_device() -> None:
    net = network()
    clipper = PerSampleClipper(net, 1.0)
    for n in (N, N, 3):
        rows = net(torch.randn(6 * n, WIDTH)).square().sum(1)
        measured = torch.zeros(n).index_add(0, torch.randint(n, (6 * n,)), rows)
        for losses in (squares(net(torch.randn(n, WIDTH))), measured):
            wanted = sample_gradients(losses, net).norm(dim=1)
            with torch.device("meta"):
                norms = clipper.backward(losses).norms
            torch.testing.assert_close(norms, wanted)


@pytest.mark.parametrize("gamma", [0.5, torch.tensor(0.5), torch.ones(N, 1), torch.ones(3)])
def test_weights_of_another_shape_are_refused(gamma: Any) -> None:
    net = network()
    with pytest.raises(ValueError, match=r"weight must return a tensor of shape \(5,\)"):
        PerSampleClipper(net, 1.0, weight=lambda norms, tau: gamma).backward(squares(net(torch.randn(N, WIDTH))))


def test_complex_losses_are_refused() -> None:
    net = nn.Linear(WIDTH, 3, dtype=torch.complex64)
    with pytest.raises(ValueError, match="losses must be real numbers"):
        PerSampleClipper(net, 1.0).backward(net(torch.randn(N, WIDTH, dtype=torch.complex64)).sum(1))


WRITES: dict[str, dict[str, Any]] = {
    "a threshold into positions": {"threshold": lambda k, norms: k.sqrt_()},
    "a weight into a constant": {"threshold": 1.0, "weight": lambda norms, tau: tau.div_(norms).clamp_(max=1.0)},
    "a weight into powers": {"threshold": PowerThreshold(1.0, 2.0), "weight": lambda norms, tau: tau.div_(norms)},
    "a weight into a tensor": {"threshold": torch.ones(N), "weight": lambda norms, tau: tau.div_(norms)},
}


@pytest.mark.parametrize("name", [*WRITES, "what comes back"])
def test_rules_that_write_into_what_they_are_given(name: str) -> None:
    """Thresholds are the same at every step, and kept."""
    net = network().double()
    clipper = PerSampleClipper(net, **WRITES.get(name, {"threshold": PowerThreshold(1.0, 2.0)}))
    positions = torch.arange(1, N + 1).double()
    for _ in range(3):
        losses = squares(net(randn(N, WIDTH)))
        rows = sample_gradients(losses, net)
        constant, unbounded = name.endswith(("constant", "tensor")), name.endswith(("powers", "tensor"))
        gamma = (torch.ones(N).double() if constant else positions.sqrt()) / rows.norm(dim=1)
        wanted = (gamma if unbounded else gamma.clamp(max=1.0)) @ rows / N
        net.zero_grad()
        stats = clipper.backward(losses)
        torch.testing.assert_close(flat_gradient(net), wanted)
        stats.thresholds.mul_(3)
