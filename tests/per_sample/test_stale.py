"""What can change while a graph looks the same: the output it starts from, who plays which part, casts, kept tensors;
and functions of the user's own that look at more than their tensors' shapes."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch import backends as flags
from torch import get_default_dtype as default_dtype
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from clipbench.per_sample import PerSampleClipper, PowerThreshold
from clipbench.per_sample.surroundings import _may_tell
from tests.per_sample.leaves import WIDTH, N, parameters, randn
from tests.per_sample.ragged import error, squares

BOUND = 1e-11


@pytest.mark.parametrize("axis", [0, 1])
def test_losses_that_are_another_part_of_the_same_tensor(axis: int) -> None:
    """One node has several outputs."""
    net = parameters((WIDTH, 3))
    clipper = PerSampleClipper(net, 1.0)
    for part in (0, 0, 2, 2, 0):
        sizes = (N, 2 * N + 1) if axis else (2 * N + 1, N)
        rows = (randn(*sizes, WIDTH) @ net[0]).square().sum(2).sum(1 - axis)
        assert error(clipper, net, rows.split([N, 1, N])[part]) < BOUND


def test_a_parameter_in_another_tensors_place() -> None:
    """As where two networks are trained together, and each is the first at times: its rows are laid out otherwise."""
    net, other = parameters((WIDTH, 3)), randn(WIDTH, 3).requires_grad_()
    clipper = PerSampleClipper(net, 1.0)
    for step in range(6):
        first, second = (net[0], other) if step % 4 < 2 else (other, net[0])
        out = (randn(N * N, WIDTH) @ first).view(N, N, 3).sum(1) + (randn(N * N, WIDTH) @ second).view(N, N, 3).sum(0)
        assert error(clipper, net, squares(out)) < BOUND


def test_a_cast_to_complex_numbers_in_place_of_a_copy() -> None:
    net = parameters((WIDTH, 3))
    clipper = PerSampleClipper(net, 1.0)
    for step in range(6):
        kind = torch.float64 if step % 4 < 2 else torch.complex128
        out = torch.randn(N, 3, WIDTH, dtype=kind) @ net[0].to(kind, copy=True)
        assert error(clipper, net, squares(out.abs())) < BOUND


def test_a_frozen_kernel_that_is_packed() -> None:
    """Samples side by side in space; the stride hides from the result how far the kernel reaches."""
    net = parameters((WIDTH, 3))
    clipper = PerSampleClipper(net, 1.0)
    for size in (1, 1, 2, 2, 1):
        kernel = randn(3, 1, size)

        def forward(x: Tensor, kernel: Tensor = kernel) -> Tensor:
            rows = (x @ net[0]).t()[None]
            return F.conv1d(rows, kernel, stride=2, padding=1, groups=3)[0].t()

        assert error(clipper, net, squares(checkpoint(forward, randn(4, WIDTH), use_reentrant=False))) < BOUND


@pytest.mark.filterwarnings("ignore:no per-sample rule")
@pytest.mark.parametrize("kept", ["a view", "a sum"])
@pytest.mark.parametrize("first", [0, 3])
def test_hooks_on_what_is_kept_of_parameters(kept: str, first: int) -> None:
    """Made once, with its hook, before the clipper looks; read at every step, or from a later one on."""
    net = parameters((WIDTH, WIDTH), (WIDTH, WIDTH))

    def made() -> Tensor:
        return net[0].t() if kept == "a view" else net[0] + net[1]

    held = made()
    held.register_hook(lambda grad: grad.clamp(-0.3, 0.3))
    clipper = PerSampleClipper(net, 1.0)
    for step in range(6):
        weight = held if step >= first else made()
        assert error(clipper, net, squares((randn(N, WIDTH) @ weight).tanh() @ net[1])) < BOUND


STATE = ModuleType("clipbench_test_state")
STATE.shift = 0  # type: ignore[attr-defined]


class _Imports(torch.autograd.Function):
    """Rolls by a number that it imports where it runs."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.roll(STATE.shift, 0)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        import clipbench_test_state  # type: ignore[import-not-found]

        return grad.roll(-clipbench_test_state.shift, 0)


def test_what_a_function_imports_in_its_backward(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, STATE.__name__, STATE)
    net = parameters((WIDTH, 3))
    clipper = PerSampleClipper(net, 1.0)
    for step in range(5):
        monkeypatch.setattr(STATE, "shift", step // 3)
        assert error(clipper, net, squares(_Imports.apply(randn(N, WIDTH) @ net[0]))) < BOUND  # type: ignore[no-untyped-call]


def by_count(grad: Tensor) -> Tensor:
    """The gradient times the number of samples that have one."""
    return grad * (grad.abs().flatten(1).sum(1) > 0).sum()


class _ByNumber(torch.autograd.Function):
    """Counts samples where a saved tensor is large."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, size: Tensor) -> Tensor:
        ctx.save_for_backward(size)
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return (by_count(grad) if ctx.saved_tensors[0].max() > 3 else grad * 1.0), None


class _ByList(_ByNumber):
    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return (by_count(grad) if ctx.saved_tensors[0].tolist()[0] > 3 else grad * 1.0), None


class _ByLength(_ByNumber):
    """The number of entries shows what they are."""

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (size,) = ctx.saved_tensors
        return (by_count(grad) if len(size[size > 3]) else grad * 1.0), None


class _RollsByLength(_ByNumber):
    """Its forward does too, so that samples change places by what is saved."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, size: Tensor) -> Tensor:
        ctx.save_for_backward(size)
        return x.roll(len(size[size > 3]), 0)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        (size,) = ctx.saved_tensors
        return grad.roll(-len(size[size > 3]), 0), None


@pytest.mark.filterwarnings("ignore:no per-sample rule")
@pytest.mark.parametrize("function", [_ByNumber, _ByList, _ByLength, _RollsByLength])
def test_functions_that_decide_by_saved_values(function: Any) -> None:
    net = parameters((WIDTH, 3), (3, 3))
    clipper = PerSampleClipper(net, 1.0)
    for step in range(6):
        size = torch.full((2,), 5.0 * (step > 2), dtype=torch.float64)
        out = function.apply((randn(N, WIDTH) @ net[0]).tanh(), size) @ net[1]
        assert error(clipper, net, squares(out)) < BOUND


class _ByNeed(torch.autograd.Function):
    """Counts samples for its second operand alone, where that is asked for."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor) -> Tensor:
        return x + y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None]:  # type: ignore[override]
        return grad, by_count(grad) if ctx.needs_input_grad[1] else None


@pytest.mark.filterwarnings("ignore:no per-sample rule")
def test_functions_that_decide_by_what_is_frozen() -> None:
    net = parameters((WIDTH, 3), (WIDTH, 3))
    clipper = PerSampleClipper(net, 1.0)
    for step in range(9):
        rows = min(step, 6) + 1  # new shapes, so that no more proof is due
        second = net[1] if step > 6 else net[1].detach()
        out = _ByNeed.apply(randn(N, rows, WIDTH) @ net[0], randn(N, rows, WIDTH) @ second)  # type: ignore[no-untyped-call]
        assert error(clipper, net, squares(out)) < BOUND


class _ByShape(torch.autograd.Function):
    """Counts samples in long gradients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        return by_count(grad) if grad.shape[1] > 6 else grad * 1.0


@pytest.mark.filterwarnings("ignore:no per-sample rule")
def test_functions_that_decide_by_the_shape_of_gradients() -> None:
    net = parameters((WIDTH, 3))
    clipper = PerSampleClipper(net, 1.0)
    for rows in range(1, 10):
        assert error(clipper, net, squares(_ByShape.apply(randn(N, rows, WIDTH) @ net[0]))) < BOUND  # type: ignore[no-untyped-call]


@pytest.mark.parametrize("threshold", [1.0, PowerThreshold(1.0, 2.0)])
@pytest.mark.parametrize("way", ["numpy", "data", "rule"])
def test_thresholds_that_are_written_into_unseen(threshold: Any, way: str) -> None:
    """NumPy shares a tensor's memory and tells nobody."""
    net = parameters((WIDTH, 3))
    wanted = [1.0] * N if threshold == 1.0 else [float(k) ** 0.5 for k in range(1, N + 1)]

    def rule(k: Tensor, norms: Tensor) -> Tensor:
        tau = torch.tensor(wanted, dtype=norms.dtype) * k / torch.arange(1, N + 1)
        k.numpy()[:] *= 3
        return tau

    clipper = PerSampleClipper(net, rule if way == "rule" else threshold)
    for _ in range(3):
        thresholds = clipper.backward(squares(randn(N, WIDTH) @ net[0])).thresholds
        torch.testing.assert_close(thresholds, torch.tensor(wanted, dtype=torch.float64))
        (thresholds.data if way == "data" else thresholds.numpy()).__imul__(3)


class _Setting:
    """An object: what it holds may change unseen."""

    def __init__(self, shift: int) -> None:
        self.shift = shift


class _OfItsClass(torch.autograd.Function):
    """Rolls by what its class holds."""

    setting = _Setting(0)

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.roll(_OfItsClass.setting.shift, 0)

    @classmethod
    def backward(cls, ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        return grad.roll(-cls.setting.shift, 0)


class _OfATensor(torch.autograd.Function):
    """Rolls by an attribute of a tensor."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, tagged: Any) -> Tensor:
        ctx.tagged = tagged
        return x.roll(tagged.shift, 0)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return grad.roll(-ctx.tagged.shift, 0), None


class _OfAText(torch.autograd.Function):
    """Rolls by a number read from a tensor's text."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, tagged: Any) -> Tensor:
        ctx.save_for_backward(torch.tensor(tagged.shift))
        return x.roll(tagged.shift, 0)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return grad.roll(-int(str(ctx.saved_tensors[0]).strip("tensor()")), 0), None


@pytest.mark.parametrize("function", [_OfItsClass, _OfATensor, _OfAText])
def test_functions_that_look_at_objects_and_texts(function: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    net = parameters((WIDTH, 3))
    clipper = PerSampleClipper(net, 1.0)
    for step in range(5):
        monkeypatch.setattr(_OfItsClass, "setting", _Setting(step // 3))
        tagged: Any = torch.zeros(2)
        tagged.shift = step // 3
        given = (randn(N, WIDTH) @ net[0],) if function is _OfItsClass else (randn(N, WIDTH) @ net[0], tagged)
        assert error(clipper, net, squares(function.apply(*given))) < BOUND


def test_a_layer_of_constants_that_takes_data_at_times() -> None:
    """And another one the other way round: what rows once were says nothing of these, and no loss mixes samples."""
    net, constants = parameters((WIDTH, WIDTH), (WIDTH, WIDTH)), randn(N, WIDTH)
    clipper = PerSampleClipper(net, 1.0)
    for step in range(8):
        first, second = (net[0], net[1]) if step % 4 < 2 else (net[1], net[0])
        out = (randn(N, WIDTH) @ second).tanh() @ (constants @ first).tanh().t()
        assert error(clipper, net, squares(out)) < BOUND


def test_samples_that_are_mixed_are_refused_at_every_step() -> None:
    """Whatever was known of other graphs; these are read as before then."""
    net, constants = parameters((WIDTH, WIDTH), (WIDTH, WIDTH)), randn(N, WIDTH)
    clipper = PerSampleClipper(net, 1.0)
    for _ in range(3):
        out = (randn(N, WIDTH) @ net[1]).tanh() @ (constants @ net[0]).tanh().t()
        assert error(clipper, net, squares(out)) < BOUND
        hidden = (randn(N, WIDTH) @ net[1]).tanh() @ net[0]
        with pytest.raises(ValueError, match="mix samples"):
            clipper.backward(squares((hidden - hidden.mean(0)).tanh()))


class _ByListWithGradients(_ByNumber):
    """Turns gradients on, as one that differentiates inside does."""

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        with torch.enable_grad():
            large = ctx.saved_tensors[0].tolist()[0] > 3
        return (by_count(grad) if large else grad * 1.0), None


class _RollsWithGradients(_RollsByLength):
    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        with torch.enable_grad():
            count = int((ctx.saved_tensors[0] > 3).sum())
        return grad.roll(-count, 0), None


@pytest.mark.filterwarnings("ignore:no per-sample rule")
@pytest.mark.parametrize("function", [_ByListWithGradients, _RollsWithGradients])
def test_functions_that_turn_gradients_on_are_no_recomputed_forward(function: Any) -> None:
    test_functions_that_decide_by_saved_values(function)


class _ByOutput(torch.autograd.Function):
    """Counts samples in what comes from its second output, if anything does."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        return x.clone(), 2 * x

    @staticmethod
    def backward(ctx: Any, first: Tensor, second: Tensor | None) -> Tensor:  # type: ignore[override]
        return first * 1.0 if second is None else first + 2 * by_count(second)


@pytest.mark.filterwarnings("ignore:no per-sample rule")
def test_functions_that_decide_by_the_outputs_that_are_used() -> None:
    net = parameters((WIDTH, 3))
    clipper = PerSampleClipper(net, 1.0)
    for step in range(9):
        rows = min(step, 6) + 1  # new shapes, so that no more proof is due
        first, second = _ByOutput.apply(randn(N, rows, WIDTH) @ net[0])  # type: ignore[no-untyped-call]
        assert error(clipper, net, squares(first + second if step > 6 else first)) < BOUND


def test_routing_inside_checkpoints_is_read_as_a_forward() -> None:
    """It looks at values, and its graph tells what came of it."""
    net = nn.ModuleList([nn.Linear(WIDTH, WIDTH).double() for _ in range(3)])
    clipper = PerSampleClipper(net, 1.0)

    def forward(x: Tensor) -> Tensor:
        out = net[2](x)
        chosen = out[..., :2].argmax(-1)
        for number in range(2):
            mine = chosen == number
            if mine.any():
                out = out.index_put((mine,), net[number](x[mine]))
        return out  # type: ignore[no-any-return]

    for step in range(5):
        x = randn(N, 6, WIDTH)
        out = checkpoint(forward, x, use_reentrant=False) if step % 3 else forward(x)
        assert error(clipper, net, squares(out)) < BOUND


class _OfMetadata(torch.autograd.Function):
    """Rolls by what is noted of its node."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, counted: Tensor) -> Tensor:
        ctx.metadata["shift"] = counted._version
        return x.roll(counted._version, 0)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return grad.roll(-ctx.metadata["shift"], 0), None


class _OfAVersion(torch.autograd.Function):
    """Rolls by how often a tensor was written into."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, counted: Tensor) -> Tensor:
        ctx.counted = counted
        return x.roll(counted._version, 0)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return grad.roll(-ctx.counted._version, 0), None


@pytest.mark.parametrize("function", [_OfMetadata, _OfAVersion])
def test_functions_that_look_at_what_torch_keeps(function: Any) -> None:
    net = parameters((WIDTH, 3))
    clipper = PerSampleClipper(net, 1.0)
    for step in range(5):
        counted = torch.zeros(2)
        for _ in range(step // 3):
            counted.add_(1)
        assert error(clipper, net, squares(function.apply(randn(N, WIDTH) @ net[0], counted))) < BOUND


def _rolling(ask: Any) -> Any:
    """A function that rolls by what `ask` says of another tensor, or of torch."""

    class Rolled(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor, asked: Tensor) -> Tensor:
            ctx.asked = asked
            return x.roll(ask(asked), 0)

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
            return grad.roll(-ask(ctx.asked), 0), None

    return Rolled


def _by_its_module(_: Tensor) -> int:
    import torch as module  # a local name

    return int(module.is_anomaly_enabled())


SETTINGS: dict[str, tuple[Any, Any, Any]] = {
    # what is asked, what changes it, and what changes it back
    "a setting": (
        lambda _: int(torch.get_default_dtype() == torch.float64),
        lambda _: torch.set_default_dtype(torch.float64),
        lambda: torch.set_default_dtype(torch.float32),
    ),
    "a setting by another name": (
        lambda _: int(default_dtype() == torch.float64),
        lambda _: torch.set_default_dtype(torch.float64),
        lambda: torch.set_default_dtype(torch.float32),
    ),
    "a setting of a module": (
        lambda _: int(torch.backends.mkldnn.enabled),
        lambda _: torch.backends.mkldnn.set_flags(False),
        lambda: torch.backends.mkldnn.set_flags(True),
    ),
    "a module by another name": (
        lambda _: int(flags.mkldnn.enabled),
        lambda _: torch.backends.mkldnn.set_flags(False),
        lambda: torch.backends.mkldnn.set_flags(True),
    ),
    "a local module": (
        _by_its_module,
        lambda _: torch.autograd.set_detect_anomaly(True),
        lambda: torch.autograd.set_detect_anomaly(False),
    ),
    "a gradient": (lambda t: int(t.grad is not None), lambda t: setattr(t, "grad", torch.zeros(1)), lambda: None),
    "hooks": (lambda t: len(t._backward_hooks or ()), lambda t: t.register_hook(lambda grad: None), lambda: None),
}


@pytest.mark.filterwarnings("ignore:Anomaly Detection")
@pytest.mark.parametrize("name", SETTINGS)
def test_functions_that_ask_what_torch_is_told(name: str) -> None:
    """Or what a tensor has: neither stands in a shape, a value or a variable."""
    ask, change, back = SETTINGS[name]
    net, asked = parameters((WIDTH, 3)), torch.zeros(1, requires_grad=True)
    clipper, function = PerSampleClipper(net, 1.0), _rolling(ask)
    try:
        for step in range(5):
            if step == 3:
                change(asked)
            assert error(clipper, net, squares(function.apply(randn(N, WIDTH) @ net[0], asked))) < BOUND
    finally:
        back()


def test_operations_of_torch_tell_nothing() -> None:
    """A function of operations alone is looked at once, whatever they are called."""
    for operation in (torch.relu, torch.zeros, torch.where, torch.nn.functional.pad, torch.linalg.svd, torch.rand_like):
        assert not _may_tell(operation)
    for question in (torch.get_num_threads, torch.is_grad_enabled, torch.initial_seed, torch.cuda.current_device):
        assert _may_tell(question)
