"""What once was wrong without a word: code that a proof cannot see, memory that is shared, parameters that change."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clipbench.per_sample import PerSampleClipper, fallback, pullback
from tests.per_sample.common import flat_gradient
from tests.per_sample.ragged import error, squares

BOUND = 1e-11
WIDTH = 4
GLOBAL_SHIFT = 0


class _Rolled(torch.autograd.Function):
    """Rolls the samples; how the backward learns by how much is up to the subclass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, by: Tensor) -> Tensor:
        ctx.save_for_backward(by)
        return x.roll(int(by), 0)


class ByItem(_Rolled):
    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad.roll(-ctx.saved_tensors[0].item(), 0), None


class ByList(_Rolled):
    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad.roll(-ctx.saved_tensors[0].tolist(), 0), None


class ByNumpy(_Rolled):
    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad.roll(-int(ctx.saved_tensors[0].numpy()), 0), None


class ByGlobal(_Rolled):
    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad.roll(-GLOBAL_SHIFT, 0), None


class ByClass(_Rolled):
    shift = 0

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad.roll(-ByClass.shift, 0), None


class ByItsOwnClass(_Rolled):
    shift = 0

    @classmethod
    def backward(cls, ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return grad.roll(-cls.shift, 0), None


class ByIndex(_Rolled):
    """The index counts up where nothing is rolled."""

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        places = (torch.arange(len(grad)) + ctx.saved_tensors[0]) % len(grad)
        return grad[places], None


class ByWriting(_Rolled):
    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        places = (torch.arange(len(grad)) - ctx.saved_tensors[0]) % len(grad)
        result = torch.zeros_like(grad)
        result[places] = grad
        return result, None


@pytest.mark.parametrize("function", [ByItem, ByList, ByNumpy, ByGlobal, ByClass, ByItsOwnClass, ByIndex, ByWriting])
def test_functions_whose_code_finds_other_rows_at_another_step(
    function: type[_Rolled], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    model = nn.Linear(WIDTH, 3).double()
    clipper = PerSampleClipper(model, 1.0)
    for by in (0, 0, 1, 2, 0):
        monkeypatch.setitem(globals(), "GLOBAL_SHIFT", by)
        monkeypatch.setattr(ByClass, "shift", by)
        monkeypatch.setattr(ByItsOwnClass, "shift", by)
        out = function.apply(model(torch.randn(5, WIDTH).double()), torch.tensor(by))  # type: ignore[no-untyped-call]
        assert error(clipper, model, squares(out * torch.randn(5, 3).double())) < BOUND


class _Two(nn.Module):
    """Two linear layers, the second to be replaced."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(WIDTH, WIDTH)
        self.second = nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor) -> Tensor:
        return squares(self.second(self.first(x).tanh()))


def _assign(model: _Two) -> None:
    model.load_state_dict({name: 2 * value for name, value in model.state_dict().items()}, assign=True)


def _replace(model: _Two) -> None:
    model.second = nn.Linear(WIDTH, 5).double()


def _normalise(model: _Two) -> None:
    nn.utils.parametrizations.weight_norm(model.first)


@pytest.mark.parametrize("change", [_assign, _replace, _normalise])
def test_parameters_that_come_after_the_clipper(change: Callable[[_Two], None]) -> None:
    torch.manual_seed(0)
    model = _Two().double()
    clipper = PerSampleClipper(model, 1.0)
    for step in range(4):
        if step == 2:
            change(model)
        assert error(clipper, model, model(torch.randn(5, WIDTH).double())) < BOUND


def test_batch_norm_that_comes_after_the_clipper_is_refused() -> None:
    model = nn.Sequential(nn.Linear(WIDTH, 3))
    clipper = PerSampleClipper(model, 1.0)
    model.append(nn.BatchNorm1d(3))
    with pytest.raises(ValueError, match="BatchNorm1d '1'"):
        clipper.backward(squares(model(torch.randn(4, WIDTH))))


class _Shares(torch.autograd.Function):
    """x + p + q, which hands one tensor to all."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, p: Tensor, q: Tensor) -> Tensor:
        return x + p + q

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return grad, grad, grad


class _Sums(nn.Module):
    """Two parameters whose gradients are equal, so that autograd makes one tensor of them."""

    def __init__(self, way: str) -> None:
        super().__init__()
        shape = (5, WIDTH) if way == "function" else (3, WIDTH)
        self.way = way
        self.p, self.q = (nn.Parameter(torch.randn(shape)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        if self.way == "function":
            return squares(_Shares.apply(x, self.p, self.q))  # type: ignore[no-untyped-call]
        if self.way == "sums":
            return squares(x * (self.p.sum() + self.q.sum()))
        return squares(F.linear(x, self.p + self.q))


@pytest.mark.parametrize("way", ["weight", "sums", "function"])
def test_gradients_have_memory_of_their_own(way: str) -> None:
    """Or a second step's, or an optimizer's writing to one, changes the other."""
    torch.manual_seed(0)
    model = _Sums(way).double()
    clipper = PerSampleClipper(model, torch.inf)
    x = torch.randn(5, WIDTH).double()
    model(x).mean().backward()
    wanted = 2 * flat_gradient(model)
    model.zero_grad()
    for _ in range(2):
        clipper.backward(model(x))
    assert (flat_gradient(model) - wanted).abs().max() < BOUND * wanted.abs().max()


@pytest.mark.filterwarnings("ignore:no per-sample rule")
def test_gradients_of_the_slow_path_have_memory_of_their_own() -> None:
    torch.manual_seed(0)
    model = _Sums("slow").double()
    clipper = PerSampleClipper(model, torch.inf)

    def losses() -> Tensor:
        low, high = torch.linalg.eigh((model.p + model.q) @ (model.p + model.q).t() + torch.eye(3).double())
        return squares(torch.cumsum(x @ (model.p + model.q).t(), 0) * low + high.sum()) + x.sum(1)

    x = torch.randn(5, WIDTH).double()
    losses().mean().backward()
    wanted = 2 * flat_gradient(model)
    model.zero_grad()
    for _ in range(2):
        clipper.backward(losses())
    assert (flat_gradient(model) - wanted).abs().max() < BOUND * wanted.abs().max()


FACTORS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "add": lambda x, p: torch.add(x, p, alpha=2j),
    "sub": lambda x, p: torch.sub(x, p, alpha=1 + 2j),
    "addcmul": lambda x, p: torch.addcmul(p, x, x, value=1j),
    "addcmul, factor": lambda x, p: torch.addcmul(x, x, p, value=1 + 1j),
    "mul": lambda x, p: x * p,
    "div": lambda x, p: x / p,
    "twice": lambda x, p: torch.add(x, p, alpha=2j) + x * p,
}


@pytest.mark.parametrize("real", [False, True])
@pytest.mark.parametrize("name", FACTORS)
def test_complex_factors(name: str, real: bool) -> None:
    """Factors are conjugated, and a real parameter among complex numbers has a real gradient."""
    torch.manual_seed(0)
    p = torch.randn(WIDTH, dtype=torch.float64 if real else torch.complex128)
    model = nn.ParameterList([nn.Parameter(p)])
    clipper = PerSampleClipper(model, 1.0)
    x = torch.randn(5, 3, WIDTH, dtype=torch.complex128)
    out = FACTORS[name](x, model[0]) * torch.randn(5, 3, WIDTH, dtype=torch.complex128)
    assert error(clipper, model, out.abs().square().sum((1, 2))) < BOUND


def test_views_of_one_parameter_in_other_shapes() -> None:
    torch.manual_seed(0)
    square = nn.ParameterList([nn.Parameter(torch.randn(4, 4).double())])
    clipper = PerSampleClipper(square, 1.0)
    x, y = torch.randn(1, 15, 2).double(), torch.randn(1, 15, 8).double()
    out = torch.cat([torch.bmm(x, square[0].view(1, 2, 8)), torch.bmm(y, square[0].view(1, 8, 2))], 2)
    assert error(clipper, square, squares(out.view(5, 3, 10))) < BOUND
    table = nn.ParameterList([nn.Parameter(torch.randn(4, 3, 2).double())])
    clipper = PerSampleClipper(table, 1.0)
    looked_up = table[0][torch.randint(4, (5, 2))].flatten(1)
    from_left = (table[0].view(12, 2) @ torch.randn(2, 5).double()).t()
    assert error(clipper, table, squares(torch.cat([looked_up, from_left], 1))) < BOUND


def test_prelu_of_a_vector() -> None:
    torch.manual_seed(0)
    model = nn.PReLU().double()
    assert error(PerSampleClipper(model, 1.0), model, model(torch.randn(6).double()).square()) < BOUND


def _cross(p: Tensor) -> Tensor:
    return torch.linalg.cross(torch.randn(3, WIDTH).double(), p, dim=0)


def _solved(p: Tensor) -> Tensor:
    systems = torch.randn(3, 3, 3).double() + 3 * torch.eye(3).double()
    return torch.linalg.solve(systems, p)[:, :1, 0]


@pytest.mark.parametrize("mixes", [_cross, _solved])
def test_nodes_that_broadcast_and_mix_rows(mixes: Callable[[Tensor], Tensor]) -> None:
    """The gradient of a row reaches other rows, then the sum over what was broadcast: nothing may be masked there."""
    torch.manual_seed(0)
    model = nn.ParameterList([nn.Parameter(torch.randn(3, 1).double())])
    clipper = PerSampleClipper(model, 1.0)
    for _ in range(2):
        assert error(clipper, model, squares(mixes(model[0]))) < BOUND


class _Picky(torch.autograd.Function):
    """A backward that can tell a batch of gradients from one."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, p: Tensor) -> Tensor:
        ctx.save_for_backward(x, p)
        return x * p.sin()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        assert not torch._C._functorch.is_batchedtensor(grad)
        x, p = ctx.saved_tensors
        return grad * p.sin(), (grad * x * p.cos()).sum(0)


def test_functions_that_refuse_a_batch_of_gradients() -> None:
    torch.manual_seed(0)
    model = nn.ParameterList([nn.Parameter(torch.randn(WIDTH).double())])
    out = _Picky.apply(torch.randn(5, WIDTH).double(), model[0])  # type: ignore[no-untyped-call]
    assert error(PerSampleClipper(model, 1.0), model, squares(out)) < BOUND


def test_batches_that_torch_sends_wrongly_through_a_node() -> None:
    """torch.vmap of the backward of cdist repeats the first row where all samples share the points."""
    torch.manual_seed(0)
    model = nn.ParameterList([nn.Parameter(torch.randn(5, WIDTH).double())])
    clipper = PerSampleClipper(model, 1.0)
    for n in (4, 4, 3):
        out = torch.cdist(torch.randn(n, 3, WIDTH).double(), model[0]).square()
        assert error(clipper, model, squares(out.flatten(1))) < BOUND


def test_zeros_do_not_show_that_a_batch_goes_through_a_node(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same where a first step's losses are masked: a batch of zeros comes out right in any way."""
    for name in ("_TRUSTED", "_LOOPED"):
        monkeypatch.setattr(pullback, name, set())
    torch.manual_seed(0)
    model = nn.ParameterList([nn.Parameter(torch.randn(5, WIDTH).double())])
    clipper = PerSampleClipper(model, 1.0)
    for scale in (0.0, 1.0, 1.0):
        out = torch.cdist(torch.randn(4, 3, WIDTH).double(), model[0]).square()
        assert error(clipper, model, squares(out.flatten(1)) * scale) < BOUND


class _Limited(torch.autograd.Function):
    """Limits the entries of the gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad.clamp(-0.5, 0.5)


class _OfOneLength(_Limited):
    """Brings the gradient of the whole batch to one length."""

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad / grad.norm().clamp(min=1e-9)


class _RowsOfOneLength(_Limited):
    """Brings the gradient of each row to one length."""

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad / grad.norm(dim=1, keepdim=True).clamp(min=1e-9)


class _OfOneSize(_Limited):
    """Divides by the largest entry of the whole batch."""

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad / grad.abs().amax().clamp(min=1e-9)


class _Squared(_Limited):
    """Products of two gradients, of all samples."""

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad @ (grad.t() @ grad)


@pytest.mark.filterwarnings("ignore:no per-sample rule")
@pytest.mark.parametrize(
    ("function", "place"),
    [
        *itertools.product([_Limited, _RowsOfOneLength, _OfOneLength, _OfOneSize, _Squared], ["rows", "weight"]),
        *itertools.product([_Limited, _RowsOfOneLength], ["hook"]),  # one that mixes samples shows in no graph
    ],
)
def test_functions_that_are_not_linear_in_the_gradient(function: type[_Limited], place: str) -> None:
    """What one sample alone would get counts, in norms and in sums."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)).double()
    clipper = PerSampleClipper(model, 1.0)
    for n in (4, 4, 2, 3):
        x = torch.randn(n, WIDTH).double()
        weight = model[1].weight
        if place == "rows":
            out = F.linear(function.apply(model[0](x)), weight)  # type: ignore[no-untyped-call]
        elif place == "weight":
            out = F.linear(model[0](x), function.apply(weight))  # type: ignore[no-untyped-call]
        else:
            hidden = model[0](x)
            hidden.register_hook(lambda grad: function.backward(None, grad))
            out = F.linear(hidden, weight)
        assert error(clipper, model, squares(out)) < BOUND


class _Both(torch.autograd.Function):
    """x + p and x · p, with gradients limited: two outputs take the slow path."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, p: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(x, p)
        return x + p, x * p

    @staticmethod
    def backward(ctx: Any, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        x, p = ctx.saved_tensors
        return first + second * p, (first + second * x).sum(0).clamp(-0.5, 0.5)


@pytest.mark.filterwarnings("ignore:no per-sample rule")
@pytest.mark.parametrize("kept", [True, False])
def test_the_slow_path_is_not_linear_either(kept: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not kept:
        monkeypatch.setattr(fallback, "SUBGRAPH_BYTES", 0)
    torch.manual_seed(0)
    model = nn.ParameterList([nn.Parameter(torch.randn(WIDTH).double())])
    clipper = PerSampleClipper(model, 1.0)
    first, second = _Both.apply(torch.randn(5, WIDTH).double(), model[0])  # type: ignore[no-untyped-call]
    assert error(clipper, model, squares(first) + squares(second)) < BOUND
