"""Functions of the user's own: what they may see, decide by and hide, none of which may make a norm wrong."""

from __future__ import annotations

import functools
import types
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clipbench.per_sample import PerSampleClipper, placement
from clipbench.per_sample.measure import rows_by_operations
from clipbench.per_sample.surroundings import HiddenError, plain, surroundings
from tests.per_sample.common import flat_gradient
from tests.per_sample.ragged import error, squares, uses_of

BOUND = 1e-11
WIDTH = 4
SHIFT = 0
SETTINGS = types.SimpleNamespace(shift=0)
ROLLED = functools.partial(torch.roll, dims=0)


def _helper(grad: Tensor) -> Tensor:
    return grad.roll(-SHIFT, 0)


def _by_default(grad: Tensor, shift: list[int] = [0]) -> Tensor:  # noqa: B006
    return grad.roll(-shift[0], 0)


class _Mover:
    shift = 0

    def __call__(self, grad: Tensor) -> Tensor:
        return grad.roll(-self.shift, 0)


MOVER = _Mover()


def _set(shift: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "SHIFT", shift)
    SETTINGS.shift = MOVER.shift = _helper.shift = shift  # type: ignore[attr-defined]
    _by_default.__defaults__[0][0] = shift  # type: ignore[index]
    ROLLED.keywords["shifts"] = -shift


SEEN: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "a function's variable": lambda ctx, grad: _helper(grad),
    "a function's default": lambda ctx, grad: _by_default(grad),
    "a function's attribute": lambda ctx, grad: grad.roll(-_helper.shift, 0),  # type: ignore[attr-defined]
    "an object": lambda ctx, grad: grad.roll(-SETTINGS.shift, 0),
    "a callable object": lambda ctx, grad: MOVER(grad),
    "a partial": lambda ctx, grad: ROLLED(grad),
    "code inside code": lambda ctx, grad: torch.stack([g.roll(0, 0) for g in (lambda: grad.roll(-SHIFT, 0))()]),
    "all variables": lambda ctx, grad: grad.roll(-globals()["SHIFT"], 0),
    "a saved shape": lambda ctx, grad: grad.roll(-len(ctx.saved_tensors[0]), 0),
}


@pytest.mark.parametrize("name", SEEN)
def test_what_a_backward_can_see_belongs_to_a_proof(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows are rolled by what changes from step to step; the graph is the same."""

    class Rolled(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor, shift: int) -> Tensor:
            ctx.save_for_backward(torch.zeros(shift))
            return x.roll(shift, 0)

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
            return _rolled(ctx, grad), None

    _rolled = SEEN[name]
    torch.manual_seed(0)
    model = nn.Linear(WIDTH, 3).double()
    clipper = PerSampleClipper(model, 1.0)
    for shift in (0, 0, 1, 2, 0):
        _set(shift, monkeypatch)
        out = Rolled.apply(model(torch.randn(5, WIDTH).double()), shift)  # type: ignore[no-untyped-call]
        assert error(clipper, model, squares(out * torch.randn(5, 3).double())) < BOUND


DTYPE = torch.float64


def test_a_dtype_and_a_device_hide_nothing() -> None:
    """They do not change: a proof need not be made anew at every step for them."""

    class Cast(torch.autograd.Function):
        device = torch.device("cpu")

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Tensor:
            return torch.clone(grad).to(Cast.device, DTYPE)

    surroundings(Cast)
    assert plain((torch.float64, torch.device("cpu"))) == ("torch.float64", "cpu")
    with pytest.raises(HiddenError):
        surroundings(type("Object", (Cast,), {"backward": staticmethod(lambda ctx, grad: SETTINGS.shift * grad)}))


class _Own(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()


DECIDES: dict[str, Callable[[Tensor], Tensor]] = {
    "rows above the mean": lambda g: g * (g.abs().sum(1, keepdim=True) > g.abs().sum() / len(g)).to(g.dtype),
    "signs without a sign": lambda g: g * g.flip(0).sign().abs(),
    "truth values": lambda g: g * g.flip(0).bool().to(g.dtype),
    "an if": lambda g: g if bool((g[0] == 0).all()) else 2 * g,
    "a count": lambda g: g * len(g.nonzero()) / 100,
    "a sum of truth values": lambda g: g * (g.flip(0) > 0).sum(),
    "a rank": lambda g: g * torch.linalg.matrix_rank(g),
    "the largest row": lambda g: g * F.one_hot(g.sum(1).argmax(), len(g))[:, None],
    "NumPy": lambda g: g * float((g.detach().numpy() != 0).sum()),
    "a constant added": lambda g: g + 0.1,
    "one added": lambda g: g + 1.0,
    "a constant put in": lambda g: g.masked_fill(torch.arange(WIDTH) > 1, 0.3),
    "one of two": lambda g: torch.where(torch.arange(WIDTH) > 1, g, torch.tensor(0.3, dtype=g.dtype)),
    "beside ones": lambda g: torch.cat([g[:, :2], torch.ones(len(g), 2, dtype=g.dtype)], 1),
    "padded by ones": lambda g: F.pad(g[:, 1:], (1, 0), value=1.0),
    "a column": lambda g: g.index_fill(1, torch.tensor([1]), 0.2),
}


def _deciding(decided: Callable[[Tensor], Tensor]) -> type[_Own]:
    """A function whose backward hands its gradient to `decided`."""

    class Decided(_Own):
        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Tensor:
            return decided(grad)

    return Decided


@pytest.mark.filterwarnings("ignore:no per-sample rule")
@pytest.mark.parametrize("place", ["function", "hook"])
@pytest.mark.parametrize("name", DECIDES)
def test_what_is_decided_by_all_gradients_together(name: str, place: str) -> None:
    """Weights on the samples do not show it: a sample alone has zeros in all other rows."""

    function = _deciding(DECIDES[name])
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 3)).double()
    clipper = PerSampleClipper(model, 1.0)
    for n in (4, 4, 2, 3):
        hidden = model[0](torch.randn(n, WIDTH).double())
        if place == "hook":
            hidden.register_hook(DECIDES[name])
        else:
            hidden = function.apply(hidden)  # type: ignore[no-untyped-call]
        assert error(clipper, model, squares(model[1](hidden))) < BOUND


PLAIN: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "the mask of a straight-through estimator": lambda ctx, g: g * (ctx.saved_tensors[0].abs() <= 1).to(g.dtype),
    "a softmax": lambda ctx, g: torch._softmax_backward_data(g, ctx.saved_tensors[0], 1, g.dtype),
    "a limit": lambda ctx, g: g.clamp(-0.1, 0.1),
    "a schedule": lambda ctx, g: -g * SHIFT,
    "zeros put in": lambda ctx, g: g.masked_fill(ctx.saved_tensors[0] > 1, 0.0),
    "nothing added": lambda ctx, g: g + 0,
    "a product": lambda ctx, g: g.mm(torch.ones(WIDTH, WIDTH, dtype=g.dtype)),
    "a smoothing": lambda ctx, g: F.conv1d(g[:, None], torch.ones(1, 1, 3, dtype=g.dtype), padding=1)[:, 0],
    "a triangle": lambda ctx, g: g.tril(),
    "zeros written over": lambda ctx, g: torch.zeros_like(g).clone().copy_(g),
}


@pytest.mark.parametrize("name", PLAIN)
def test_plain_functions_are_proven(name: str) -> None:
    """With all rows apart; only what is above a function of doubtful kind is, too, where there is one."""

    class Plain(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            ctx.save_for_backward(x)
            return x.clone()

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Tensor:
            return _plain(ctx, grad)

    _plain = PLAIN[name]
    model = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 3)).double()
    losses = squares(model[1](Plain.apply(model[0](torch.randn(5, WIDTH).double()))))  # type: ignore[no-untyped-call]
    verdicts = placement.prove(losses, uses_of(losses, model))
    assert verdicts == [placement.Layout.MAJOR] * 2


def test_layers_above_a_doubtful_function_are_proven() -> None:
    """And parameters that it reads itself: what it makes of one sample's gradient is asked of that alone."""

    class Doubtful(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor, p: Tensor) -> Tensor:
            ctx.save_for_backward(x, p)
            return x * p

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
            x, p = ctx.saved_tensors
            return grad * p / grad.norm(), (grad * x).sum(0) / grad.norm()

    torch.manual_seed(0)
    model = nn.ModuleList([nn.Linear(WIDTH, WIDTH), nn.PReLU(WIDTH), nn.Linear(WIDTH, 3)]).double()
    clipper = PerSampleClipper(model, 1.0)

    def off(n: int) -> float:
        hidden = Doubtful.apply(model[0](torch.randn(n, WIDTH).double()), model[1].weight)  # type: ignore[no-untyped-call]
        return error(clipper, model, squares(model[2](hidden)))

    with pytest.warns(UserWarning, match=r"used: 0\.weight \([^)]*\), 0\.bias \([^)]*\); their gradients"):
        assert off(4) < BOUND
    assert max(off(4), off(3)) < BOUND


@pytest.mark.filterwarnings("ignore:no per-sample rule")
@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("function", ["a count", "a sum of truth values", "a rank", "an if"])
def test_a_look_at_what_is_above_says_nothing_of_a_function(function: str, frozen: bool) -> None:
    """Nor does one at layers above it while those below were frozen; more graphs than are proven."""

    own = _deciding(DECIDES[function])
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 3)).double()
    clipper = PerSampleClipper(model, 1.0)
    for n in (4, 4, 3, 5, 6, 7, 8, 9, 10, 4):
        model[0].requires_grad_(not frozen or n > 5)
        hidden = own.apply(model[0](torch.randn(n, WIDTH).double().requires_grad_()))  # type: ignore[no-untyped-call]
        losses = squares(model[2](model[1](hidden).tanh()))
        if model[0].weight.requires_grad:
            assert error(clipper, model, losses) < BOUND
        else:
            clipper.norms(losses)


@pytest.mark.filterwarnings("ignore:no per-sample rule")
def test_layers_above_a_doubtful_function_are_measured_where_nothing_is_proven() -> None:
    class Limited(_Own):
        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Tensor:
            return grad / grad.norm()

    class Scaled(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor, by: Tensor) -> Tensor:
            ctx.save_for_backward(by)
            return x * by

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
            return grad * ctx.saved_tensors[0].item(), None

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 3)).double()
    clipper = PerSampleClipper(model, 1.0)
    for n in (4, 4, 3, 5):
        hidden = Limited.apply(model[0](torch.randn(n, WIDTH).double()))  # type: ignore[no-untyped-call]
        hidden = Scaled.apply(model[1](hidden), torch.tensor(2.0).double())  # type: ignore[no-untyped-call]
        assert error(clipper, model, squares(model[2](hidden))) < BOUND


@pytest.mark.filterwarnings("error:no per-sample rule")
def test_nothing_comes_back_for_an_input_at_ever_new_lengths() -> None:
    """More graphs than are proven; that makes no function a doubtful one."""

    class First(_Own):
        @staticmethod
        def forward(ctx: Any, x: Tensor, y: Tensor) -> Tensor:
            return x + y

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
            return 2 * grad, None

    torch.manual_seed(0)
    model = nn.ModuleList([nn.Linear(WIDTH, 3), nn.Linear(WIDTH, 3)]).double()
    clipper = PerSampleClipper(model, 1.0)
    for steps in range(1, 9):
        x = torch.randn(3, steps, WIDTH).double()
        out = First.apply(model[0](x), model[1](x))  # type: ignore[no-untyped-call]
        assert error(clipper, model, squares(out)) < BOUND


@pytest.mark.filterwarnings("ignore:no per-sample rule")
def test_a_limit_on_gradients_at_ever_new_lengths() -> None:
    """More graphs than are proven; measured, a limit looks like a mixture of samples."""

    class Limited(_Own):
        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Tensor:
            return grad.clamp(-0.1, 0.1)

    torch.manual_seed(0)
    model = nn.GRUCell(WIDTH, 3).double()
    clipper = PerSampleClipper(model, 1.0)
    for steps in range(1, 9):
        state = torch.zeros(4, 3).double()
        for _ in range(steps):
            state = Limited.apply(model(torch.randn(4, WIDTH).double(), state))  # type: ignore[no-untyped-call]
        assert error(clipper, model, squares(state)) < BOUND


@pytest.mark.parametrize("zeros", [True, False])
def test_code_in_another_language(zeros: bool) -> None:
    """It writes where no operation shows: what it was given is not what it was made."""

    class Native(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.flip(0)

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Tensor:
            with torch._C.DisableTorchFunction():  # no call of torch's functions is seen, as from C++
                made = torch.zeros_like(grad) if zeros else torch.empty_like(grad)
                made.numpy()[...] = grad.numpy()[::-1]
            return made

    torch.manual_seed(0)
    model = nn.Linear(WIDTH, 3).double()
    clipper = PerSampleClipper(model, 1.0)
    for n in (4, 4, 5):
        out = Native.apply(model(torch.randn(n, WIDTH).double()))  # type: ignore[no-untyped-call]
        assert rows_by_operations(squares(out), uses_of(squares(out), model), moving=True) is None
        assert error(clipper, model, squares(out * torch.arange(1, n + 1)[:, None])) < BOUND


class _Hides(torch.autograd.Function):
    """Computes a layer that the graph does not show, and sends its gradients where they belong by itself."""

    @staticmethod
    def forward(ctx: Any, layer: nn.Module, x: Tensor) -> Tensor:
        ctx.layer = layer
        ctx.save_for_backward(x)
        return layer(x.detach()).detach()  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor | None]:
        x = ctx.saved_tensors[0].detach().requires_grad_()
        with torch.enable_grad():
            out = ctx.layer(x)
        torch.autograd.backward(out, grad)
        return None, x.grad


@pytest.mark.parametrize("before", [True, False])
def test_functions_that_hide_layers_are_refused(before: bool) -> None:
    model = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 3)).double()
    if before:
        squares(model(torch.randn(2, WIDTH).double())).sum().backward()
    losses = squares(_Hides.apply(model[1], model[0](torch.randn(4, WIDTH).double())))  # type: ignore[no-untyped-call]
    with pytest.raises(ValueError, match=r"adds to the gradient of 1\.weight"):
        PerSampleClipper(model, 1.0).backward(losses)
    if not before:
        assert not flat_gradient(model)[: WIDTH * WIDTH].any()


def test_proofs_are_looked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """An operation of which a proof knows too little is found by what it makes of the first gradients."""
    torch.manual_seed(0)
    model = nn.Linear(WIDTH, 3).double()
    clipper = PerSampleClipper(model, 1.0)
    monkeypatch.setattr(placement, "prove", lambda losses, uses: [placement.Layout.MAJOR] * len(uses))
    for n in (2, 3, 4, 4):
        out = model(torch.randn(5, n, WIDTH).double())  # time first
        assert error(clipper, model, squares(out[-1]) + squares(out.movedim(0, 1))) < BOUND


@pytest.mark.parametrize("p", [1.0, 2.0, torch.inf])
@pytest.mark.parametrize("time_first", [True, False])
def test_distances_of_all_pairs(p: float, time_first: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the largest difference as distance, made-up values have none of it."""
    torch.manual_seed(0)
    monkeypatch.setattr(placement.Placement, "_confirmed", lambda self, losses, uses, verdicts: verdicts, raising=False)
    model = nn.Linear(WIDTH, 3).double()
    clipper = PerSampleClipper(model, 1.0)
    for n in (4, 4, 3):
        sizes = [5] * n if time_first else [2 + k % 3 for k in range(n)]
        rows = model(torch.randn(sum(sizes), WIDTH).double())
        parts = rows.view(5, n, 3).unbind(1) if time_first else rows.split(sizes)
        assert error(clipper, model, torch.stack([F.pdist(part, p).square().sum() for part in parts])) < BOUND
