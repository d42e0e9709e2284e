"""No step waits for the device: it runs on tensors without values, and as one traced and compiled graph."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.func import functional_call
from torch.fx.experimental.proxy_tensor import make_fx

from clipbench.data.base import Spec
from clipbench.models import MLP, AlexNet, Transformer
from clipbench.per_sample import PerSampleClipper, PowerThreshold
from tests.per_sample.common import square_loss
from tests.per_sample.zoo import CASES

IMAGES, TOKENS = Spec("image", (3, 32, 32), 10, "images"), Spec("tokens", (12,), 7, "tokens")
MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor]]] = {
    "alexnet": (lambda: AlexNet(IMAGES), lambda: torch.randn(4, 3, 32, 32)),
    "mlp": (lambda: MLP(IMAGES), lambda: torch.randn(4, 3, 32, 32)),
    "transformer": (
        lambda: Transformer(TOKENS, layers=2, heads=2, width=16, dropout=0.1, bias=True),
        lambda: torch.randint(7, (4, 12)),
    ),
}


@pytest.mark.parametrize("name", [*MODELS, *(name for name in CASES if name != "checkpointed")])
def test_a_step_reads_no_value(name: str) -> None:
    """Under FakeTensorMode there are no values: `.item()`, `bool(tensor)`, `nonzero`, masked indexing raise."""
    with FakeTensorMode():
        build, inputs = {**CASES, **MODELS}[name]
        model, x = build(), inputs()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        clipper = PerSampleClipper(model, PowerThreshold(5.0, 2.0))
        for _ in range(2):
            stats = clipper.backward(square_loss(model, x))
            optimizer.step()
        assert stats.norms.shape == (len(x),)
        assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


def test_what_a_real_step_keeps_is_not_used_by_a_fake_one() -> None:
    """And the other way round, and from one mode to the next, with one threshold object for all."""
    threshold = PowerThreshold(5.0, 2.0)
    build, inputs = MODELS["alexnet"]
    for mode in (contextlib.nullcontext(), FakeTensorMode(), FakeTensorMode(), contextlib.nullcontext()):
        with mode:
            model = build()
            stats = PerSampleClipper(model, threshold).backward(square_loss(model, inputs()))
            assert stats.norms.shape == (4,)


def test_reading_a_value_would_be_noticed() -> None:
    with FakeTensorMode():
        model = nn.Linear(3, 2)
        losses = square_loss(model, torch.randn(4, 3))
        with pytest.raises(DataDependentOutputException, match="_local_scalar_dense"):
            PerSampleClipper(model, lambda k, norms: norms * float(norms.max())).backward(losses)
        with pytest.raises(DataDependentOutputException, match="_local_scalar_dense"):
            PerSampleClipper(model, 1.0, nonfinite="raise").backward(square_loss(model, torch.randn(4, 3)))


def gradients_of(
    model: nn.Module, clipper: PerSampleClipper
) -> Callable[[dict[str, Tensor], Tensor, Tensor], list[Tensor]]:
    """The step's gradients as a function of parameters and batch, for tracing."""

    def call(parameters: dict[str, nn.Parameter], x: Tensor, y: Tensor) -> list[Tensor]:
        with torch.enable_grad():
            losses = F.cross_entropy(functional_call(model, parameters, (x,)), y, reduction="none")
            clipper.backward(losses)
        return [p.grad for p in parameters.values() if p.grad is not None]

    return call


def test_a_step_as_one_compiled_graph() -> None:
    """Forward, norms and weighting traced by make_fx and compiled: one graph without a break, right on other data."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(4), nn.Flatten(), nn.Linear(32, 5))
    batches = [(torch.randn(6, 3, 8, 8), torch.randint(5, (6,))) for _ in range(2)]
    wanted = []
    for x, y in batches:
        twin = copy.deepcopy(model)
        PerSampleClipper(twin, PowerThreshold(0.3, 2.0)).backward(F.cross_entropy(twin(x), y, reduction="none"))
        wanted.append([p.grad for p in twin.parameters()])
    parameters = dict(model.named_parameters())
    clipper = PerSampleClipper(model, PowerThreshold(0.3, 2.0))
    graph = make_fx(gradients_of(model, clipper))(parameters, *batches[0])
    compiled = torch.compile(graph, backend="aot_eager", fullgraph=True)
    for (x, y), expected in zip(batches, wanted, strict=True):
        with torch.no_grad():  # the backward pass is part of the graph
            found = compiled(parameters, x, y)
        for got, want in zip(found, expected, strict=True):
            torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-6)
