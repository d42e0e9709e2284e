"""Hooks on tensors: norms and sums are of the gradients that they leave, as in one backward pass a sample."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clipbench.per_sample import PerSampleClipper
from clipbench.per_sample.engine import PerSampleGradients
from tests.per_sample.ragged import error, squares

BOUND = 1e-11
WIDTH = 4
Hook = Callable[[Tensor], Tensor]
HOOKS: dict[str, Hook] = {
    "doubled": lambda grad: 2 * grad,
    "limited": lambda grad: grad.clamp(-0.3, 0.3),
    "rolled": lambda grad: grad.roll(1, -1),
    "left alone": lambda grad: None,  # type: ignore[return-value,dict-item]
}


def _hooked(x: Tensor, hook: Hook) -> Tensor:
    x.register_hook(hook)
    return x


def _layers(net: nn.ParameterList, x: Tensor, hook: Hook) -> Tensor:
    return _hooked(_hooked(x @ net[0], hook) @ net[1], hook)


def _sum(net: nn.ParameterList, x: Tensor, hook: Hook) -> Tensor:
    return _hooked(x @ net[0] + net[1][0], hook)


def _two_of_one(net: nn.ParameterList, x: Tensor, hook: Hook) -> Tensor:
    return _hooked(x * net[0][1] + net[0][0], hook) @ net[1]


def _from_parameters(net: nn.ParameterList, x: Tensor, hook: Hook) -> Tensor:
    return F.linear(x, _hooked(net[0] * net[1], hook))


PLACES = [_layers, _sum, _two_of_one, _from_parameters]


@pytest.mark.filterwarnings("ignore:no per-sample rule")
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", HOOKS)
def test_hooks_where_the_gradient_goes_on(name: str, place: Callable[..., Tensor]) -> None:
    """Above other layers, where torch hands out the gradient as it was before the hook."""
    torch.manual_seed(0)
    net = nn.ParameterList([nn.Parameter(torch.randn(WIDTH, WIDTH).double()) for _ in range(2)])
    clipper = PerSampleClipper(net, 1.0)
    for n in (3, 5, 5, 2):
        for steps in ((), (3,)):
            out = place(net, torch.randn(n, *steps, WIDTH).double(), HOOKS[name])
            assert error(clipper, net, squares(out * 1.5)) < BOUND


@pytest.mark.filterwarnings("ignore:no per-sample rule")
@pytest.mark.parametrize("name", HOOKS)
def test_hooks_beside_rows_that_mix(name: str) -> None:
    """A weight that is made of others, with a hook, above a layer whose rows are no samples'."""
    torch.manual_seed(0)
    net = nn.ParameterList([nn.Parameter(torch.randn(WIDTH, WIDTH).double()) for _ in range(3)])
    clipper = PerSampleClipper(net, 1.0)
    for n in (4, 4, 3):
        hidden = torch.randn(n, WIDTH).double() @ net[2]
        out = F.linear(hidden + 0.5 * hidden.flip(0), _hooked(net[0] * net[1], HOOKS[name]))
        assert error(clipper, net, squares(out)) < BOUND


@pytest.mark.filterwarnings("error:no per-sample rule")
@pytest.mark.parametrize("first", [0, 1])
def test_hooks_that_come_later_and_go(first: int) -> None:
    """Also on graphs that were made before an earlier step, and on a graph that is read twice."""
    torch.manual_seed(0)
    net = nn.ParameterList([nn.Parameter(torch.randn(WIDTH, WIDTH).double()) for _ in range(2)])
    clipper = PerSampleClipper(net, 1.0)

    def losses(hooked: bool) -> Tensor:
        hook = HOOKS["doubled" if hooked else "left alone"]
        return squares(_layers(net, torch.randn(5, WIDTH).double(), hook) * 1.5)

    for step in range(6):
        assert error(clipper, net, losses(step % 3 == first)) < BOUND
    both = [losses(False), losses(True)]
    for part in (both[first], both[1 - first]):
        clipper.norms(part)
        assert error(clipper, net, part) < BOUND


def test_nodes_are_asked_only_where_hooks_are_new(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hook on every node at every step would cost more than the hooks of users do."""
    from clipbench.per_sample import hooks

    asked: list[int] = []
    enter = hooks.Passing.__enter__

    def counted(self: hooks.Passing) -> None:
        enter(self)
        asked.append(len(self._handles))

    monkeypatch.setattr(hooks.Passing, "__enter__", counted)
    net = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, 3))
    clipper = PerSampleClipper(net, 1.0)
    for step in range(4):
        asked.clear()
        clipper.backward(squares(net(torch.randn(5, WIDTH))))
        assert (sum(asked) > 0) == (step == 0)


@pytest.mark.parametrize(("name", "alone"), [("left alone", False), ("doubled", False), ("limited", True)])
def test_only_hooks_that_may_be_nonlinear_make_samples_be_summed_one_by_one(name: str, alone: bool) -> None:
    """Between what is made of parameters and these: there a sum over samples is much the faster one."""
    net = nn.ParameterList([nn.Parameter(torch.randn(WIDTH, WIDTH).double()) for _ in range(2)])
    gradients = PerSampleGradients(net)
    for n in (5, 3):
        gradients.collect(squares(_from_parameters(net, torch.randn(n, WIDTH).double(), HOOKS[name])))
        assert gradients._odd == alone
