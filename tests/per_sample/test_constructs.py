"""Every way in which a parameter may meet the samples, against the batch-of-one loop in float64, on no slow path."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.checkpoint import checkpoint

from clipbench.per_sample import PerSampleClipper, PowerThreshold
from tests.per_sample.common import errors, flat_gradient, square_loss
from tests.per_sample.constructs import (
    CONSTRUCTS,
    LAYERS,
    NODES,
    SUBGRAPHS,
    Construct,
    Forward,
    Made,
    images,
    sequences,
    tokens,
)
from tests.reference.per_sample import clipped_mean, sample_gradients


@pytest.mark.parametrize("n", [2, 3, 5])
@pytest.mark.parametrize("name", CONSTRUCTS)
def test_matches_the_loop(name: str, n: int) -> None:
    torch.manual_seed(0)
    build, inputs = CONSTRUCTS[name]
    model, x = build().double(), inputs(n)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="no per-sample rule")
        off_norms, off_gradient = errors(model, x.double() if x.is_floating_point() else x, steps=2)
    assert off_norms < 1e-12
    assert off_gradient < 1e-12


@pytest.mark.parametrize("name", CONSTRUCTS)
def test_checkpointed(name: str) -> None:
    """A region's tensors are handed out once in a backward pass."""
    torch.manual_seed(0)
    build, inputs = CONSTRUCTS[name]
    model, x = build().double(), inputs(3)
    x = x.double() if x.is_floating_point() else x

    def loss(model: nn.Module, x: Tensor) -> Tensor:
        out = checkpoint(model, x, use_reentrant=False).flatten(1)
        return 0.5 * out.square().sum(1) + out.sum(1)

    assert max(errors(model, x, loss, steps=2)) < 1e-12


@pytest.mark.parametrize("name", [name for name in CONSTRUCTS if name != "custom function"])
def test_reads_no_value(name: str) -> None:
    """Under FakeTensorMode there are no values: `.item()`, `bool(tensor)`, `nonzero`, masked indexing raise."""
    with FakeTensorMode():
        build, inputs = CONSTRUCTS[name]
        model, x = build(), inputs(11)
        clipper = PerSampleClipper(model, PowerThreshold(5.0, 2.0))
        for _ in range(2):
            stats = clipper.backward(square_loss(model, x))
        assert stats.norms.shape == (11,)
        assert all(p.grad is not None for p in model.parameters())


def complex_gradients(model: nn.Module, x: Tensor) -> Tensor:
    """Per-sample gradients as rows of real numbers, by autograd."""
    rows = []
    for k in range(len(x)):
        grads = torch.autograd.grad(square_loss(model, x[k : k + 1]).sum(), list(model.parameters()))
        rows.append(torch.cat([(torch.view_as_real(g) if g.is_complex() else g).flatten() for g in grads]))
    return torch.stack(rows)


def spectrum(p: Any, x: Tensor) -> Tensor:
    return torch.fft.irfft(torch.fft.rfft(x, dim=1) * p.a + p.b, n=7, dim=1)


COMPLEX: dict[str, tuple[Forward, dict[str, tuple[int, ...]]]] = {
    "filter": (spectrum, {"a": (4, 6), "b": (6,)}),
    "one filter at all frequencies": (spectrum, {"a": (6,), "b": (4, 1)}),
    "quotient": (lambda p, x: torch.view_as_real((x + 1j) / p.a - p.b), {"a": (6,), "b": ()}),
    "matrix": (lambda p, x: torch.view_as_real((x + 1j * x.tanh()) @ p.a), {"a": (6, 4)}),
    "wide matrix": (lambda p, x: torch.view_as_real((x + 1j * x.tanh()) @ p.a), {"a": (6, 70)}),
    "matrix, transposed": (lambda p, x: F.linear(x + 1j, p.a).abs(), {"a": (4, 6)}),
    "heads": (
        lambda p, x: torch.einsum("nthd,hde->nthe", (x + 1j * x.tanh()).unflatten(-1, (2, 3)), p.a).real,
        {"a": (2, 3, 4)},
    ),
    "vector": (lambda p, x: torch.view_as_real((x + 1j) @ p.a), {"a": (6,)}),
    "through others": (lambda p, x: (x + 1j) * (p.a * p.b).exp().imag, {"a": (6,), "b": ()}),
}


@pytest.mark.parametrize("n", [2, 3, 5])
@pytest.mark.parametrize("name", COMPLEX)
def test_complex_parameters(name: str, n: int) -> None:
    """The gradient is that of autograd, conjugated; a norm counts real and imaginary parts."""
    torch.manual_seed(0)
    forward, shapes = COMPLEX[name]
    model = Made(lambda p, x: real(forward(p, x)), **shapes)
    for key, parameter in list(model.named_parameters()):
        setattr(model, key, nn.Parameter(torch.randn(parameter.shape, dtype=torch.complex128)))
    x = torch.randn(n, 7, 6).double()
    rows = complex_gradients(model, x)
    stats = PerSampleClipper(model, 0.7).backward(square_loss(model, x))
    torch.testing.assert_close(stats.norms, rows.norm(dim=1))
    found = torch.cat([torch.view_as_real(p.grad).flatten() for p in model.parameters() if p.grad is not None])
    torch.testing.assert_close(found, clipped_mean(rows, torch.full((n,), 0.7)))


def real(x: Tensor) -> Tensor:
    """Real and imaginary part side by side."""
    return torch.view_as_real(x) if x.is_complex() else x


HALF: dict[str, Construct] = {
    "layer norm": (lambda: nn.Sequential(nn.LayerNorm(6), nn.Linear(6, 5), nn.LayerNorm((7, 5))), sequences),
    "rms norm": (lambda: nn.RMSNorm(6), sequences),
    "group norm": (lambda: nn.Sequential(nn.GroupNorm(2, 4), nn.Conv2d(4, 5, 3), nn.GroupNorm(1, 5)), images),
    "instance norm": (lambda: nn.InstanceNorm2d(4, affine=True), images),
    "batch norm": (lambda: nn.BatchNorm2d(4).eval(), images),
    "embedding": (lambda: nn.Embedding(9, 6), tokens),
    **{name: SUBGRAPHS[name] for name in ("position table", "weight norm", "one plus")},
    **{name: NODES[name] for name in ("bilinear", "bag, mean", "heads by bmm", "power", "divided")},
    **{name: LAYERS[name] for name in ("prelu of vectors", "conv2d same")},
}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", HALF)
def test_half_precision(name: str, dtype: torch.dtype) -> None:
    """Norms in float32, near those of the same model in float64."""
    torch.manual_seed(0)
    build, inputs = HALF[name]
    model, x = build().to(dtype), inputs(5)
    x = x.to(dtype) if x.is_floating_point() else x
    rows = sample_gradients(model, square_loss, x)
    stats = PerSampleClipper(model, float("inf")).backward(square_loss(model, x).float())
    assert stats.norms.dtype is torch.float32
    torch.testing.assert_close(stats.norms.double(), rows.norm(dim=1), rtol=0.1, atol=0.1)
    assert (flat_gradient(model) - rows.mean(0)).norm() <= 0.1 * rows.mean(0).norm()
    assert all(p.grad is not None and p.grad.dtype is dtype for p in model.parameters())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_small_weights_beside_half_precision(dtype: torch.dtype) -> None:
    """γ/n = 2⁻²² is below what float16 holds; what it makes of a large gradient is not."""
    torch.manual_seed(0)
    for build, x in ((lambda: nn.Linear(6, 5), torch.randn(4, 6)), (lambda: nn.Conv1d(6, 5, 1), torch.randn(4, 6, 1))):
        layer = build().to(dtype)
        out = layer(x.to(dtype))
        losses = (out.flatten(1).float() * 2.0**10).sum(1)
        clipper = PerSampleClipper(layer, 1.0, lambda norms, tau: torch.full_like(norms, 2.0**-20))
        clipper.backward(losses)
        assert layer.bias.grad is not None
        torch.testing.assert_close(layer.bias.grad.float(), torch.full((5,), 2.0**-10))
        wanted = x.flatten(1).to(dtype).float().mean(0) * 2.0**-10
        assert layer.weight.grad is not None
        found = layer.weight.grad.float().flatten(1)
        torch.testing.assert_close(found, wanted.expand(5, 6), rtol=0.02, atol=2.0**-16)
