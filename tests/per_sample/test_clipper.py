"""The public interface: thresholds, weights, accumulation, statistics, lost samples, refusals."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from clipbench.per_sample import PerSampleClipper, PowerThreshold
from clipbench.per_sample import clipper as clipper_module
from tests.per_sample.common import flat_gradient, square_loss
from tests.per_sample.zoo import Power, Rotated
from tests.reference.per_sample import clipped_mean, power_thresholds, sample_gradients


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 7), nn.Tanh(), nn.Linear(7, 3)).double()


@pytest.fixture
def x() -> Tensor:
    torch.manual_seed(1)
    return torch.randn(8, 6).double()


def test_the_papers_estimator_by_hand() -> None:
    """One weight, loss k: w · x_k, so g_k = x_k: with x = (3, -2, 0.5) and τ_k = k^{1/2}: (1 - 1.41421 + 0.5)/3."""
    line = nn.Linear(1, 1, bias=False).double()
    x = torch.tensor([[3.0], [-2.0], [0.5]]).double()
    stats = PerSampleClipper(line, PowerThreshold(1.0, 2.0)).backward(line(x)[:, 0])
    assert line.weight.grad is not None
    assert line.weight.grad.item() == pytest.approx((1.0 - math.sqrt(2.0) + 0.5) / 3.0)
    assert stats.norms.tolist() == pytest.approx([3.0, 2.0, 0.5])
    assert stats.clipped_fraction.item() == pytest.approx(2 / 3)
    assert stats.dropped.item() == 0


@pytest.mark.parametrize(("alpha", "beta"), [(0.5, 2.0), (2.0, 1.3), (1.0, math.inf)])
def test_power_threshold(model: nn.Module, x: Tensor, alpha: float, beta: float) -> None:
    stats = PerSampleClipper(model, PowerThreshold(alpha, beta)).backward(square_loss(model, x))
    tau = power_thresholds(8, alpha, beta)
    torch.testing.assert_close(stats.thresholds, tau)
    wanted = clipped_mean(sample_gradients(model, square_loss, x), tau)
    torch.testing.assert_close(flat_gradient(model), wanted)


def test_power_threshold_follows_its_parameters_and_the_batch(x: Tensor) -> None:
    rule = PowerThreshold(1.0, 2.0)
    k = torch.arange(1, 5).double()
    assert rule(k, k).tolist() == pytest.approx([1.0, 2**0.5, 3**0.5, 2.0])
    rule.alpha = 3.0
    assert rule(k, k).tolist() == pytest.approx([3.0, 3 * 2**0.5, 3 * 3**0.5, 6.0])
    assert rule(k[:2], k[:2]).shape == (2,)


def test_threshold_as_tensor_and_as_callable(model: nn.Module, x: Tensor) -> None:
    rows = sample_gradients(model, square_loss, x)
    tau = torch.linspace(0.1, 5.0, 8).double()
    PerSampleClipper(model, tau).backward(square_loss(model, x))
    torch.testing.assert_close(flat_gradient(model), clipped_mean(rows, tau))
    model.zero_grad()
    PerSampleClipper(model, lambda k, norms: norms.median() * k / k).backward(square_loss(model, x))
    median = rows.norm(dim=1).median().expand(8)
    torch.testing.assert_close(flat_gradient(model), clipped_mean(rows, median))


@pytest.mark.parametrize("threshold", [0.7, PowerThreshold(0.7, 2.0), torch.linspace(0.1, 5.0, 8).double()])
def test_accumulation_is_the_whole_batch(model: nn.Module, x: Tensor, threshold: object) -> None:
    clipper = PerSampleClipper(model, threshold)  # type: ignore[arg-type]
    clipper.backward(square_loss(model, x))
    whole = flat_gradient(model)
    model.zero_grad()
    for first, last in ((0, 3), (3, 7), (7, 8)):
        stats = clipper.backward(square_loss(model, x[first:last]), offset=first, total=8)
        assert stats.thresholds.shape == (last - first,)
    torch.testing.assert_close(flat_gradient(model), whole)


def test_gradients_are_added(model: nn.Module, x: Tensor) -> None:
    clipper = PerSampleClipper(model, 0.7)
    clipper.backward(square_loss(model, x))
    once = flat_gradient(model)
    clipper.backward(square_loss(model, x))
    torch.testing.assert_close(flat_gradient(model), 2 * once)


def test_another_weight(model: nn.Module, x: Tensor) -> None:
    """Automatic clipping: γ = 1/(‖g‖ + 0.01)."""
    PerSampleClipper(model, 1.0, weight=lambda norms, tau: tau / (norms + 0.01)).backward(square_loss(model, x))
    rows = sample_gradients(model, square_loss, x)
    wanted = (rows / (rows.norm(dim=1, keepdim=True) + 0.01)).mean(0)
    torch.testing.assert_close(flat_gradient(model), wanted)


def test_norms_leave_gradients_and_graph_alone(model: nn.Module, x: Tensor) -> None:
    losses = square_loss(model, x)
    clipper = PerSampleClipper(model, 1.0)
    norms = clipper.norms(losses)
    assert all(p.grad is None for p in model.parameters())
    torch.testing.assert_close(norms, sample_gradients(model, square_loss, x).norm(dim=1))
    torch.testing.assert_close(clipper.backward(losses).norms, norms)


def test_zero_gradients(model: nn.Module) -> None:
    stats = PerSampleClipper(model, 1.0).backward(square_loss(model, torch.ones(4, 6).double()) * 0.0)
    assert stats.norms.tolist() == [0.0] * 4
    assert stats.clipped_fraction == 0
    assert flat_gradient(model).abs().max() == 0


@pytest.mark.parametrize("readable", [True, False], ids=["asked", "masked"])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_lost_samples_are_dropped(monkeypatch: pytest.MonkeyPatch, bad: float, readable: bool) -> None:
    """Weight zero, counted in n, and no 0 · inf = NaN, on both ways of taking them out."""
    monkeypatch.setattr(clipper_module, "readable", lambda tensor: readable)
    torch.manual_seed(0)
    layers = nn.Sequential(
        nn.Conv2d(2, 3, 3), nn.GroupNorm(1, 3), nn.ReLU(), nn.Flatten(), nn.Linear(27, 4), nn.LayerNorm(4)
    )
    layers = layers.double()
    x = torch.randn(6, 2, 5, 5).double()
    rows = sample_gradients(layers, square_loss, x)
    x[2, 0, 1, 1] = bad
    scale = torch.ones(6).double()
    scale[2] = bad
    scale[4] = math.nan
    stats = PerSampleClipper(layers, 0.5).backward(square_loss(layers, x) * scale)
    rows[[2, 4]] = 0.0
    assert stats.dropped.item() == 2
    torch.testing.assert_close(flat_gradient(layers), clipped_mean(rows, torch.full((6,), 0.5)))


def test_a_lost_sample_on_the_slow_path_loses_the_batch() -> None:
    """There all samples share one graph, through which 0 · inf reaches them: the step is dropped, never NaN."""
    torch.manual_seed(0)
    layer = Rotated().double()
    x = torch.randn(4, 6).double()
    x[1] = math.inf
    with pytest.warns(UserWarning, match="no per-sample rule"):
        stats = PerSampleClipper(layer, 0.5).backward(layer(x).square().sum(1))
    assert stats.dropped.item() == 4
    assert flat_gradient(layer).abs().max() == 0


def test_lost_samples_can_raise(model: nn.Module, x: Tensor) -> None:
    x[3] = math.nan
    with pytest.raises(FloatingPointError, match="1 of 8"):
        PerSampleClipper(model, 1.0, nonfinite="raise").backward(square_loss(model, x))
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0.0,), "threshold must be > 0, got 0.0"),
        ((math.nan,), "threshold must be > 0, got nan"),
        ((torch.ones(2, 2),), "threshold must be a tensor of one axis"),
        (("1",), "threshold must be a number, a tensor or a callable, got '1'"),
        ((1.0, 3.0), "weight must be a callable"),
        ((1.0, None, "ignore"), "nonfinite must be 'drop' or 'raise', got 'ignore'"),
    ],
)
def test_bad_arguments(model: nn.Module, arguments: tuple[object, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PerSampleClipper(model, *arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize(("alpha", "beta"), [(-1, 2.0), (0.0, 2.0), (math.nan, 2.0), (1.0, 0.0), (1.0, -2.0)])
def test_bad_power_threshold(alpha: float, beta: float) -> None:
    name, value = ("beta", beta) if alpha == 1.0 else ("alpha", alpha)
    with pytest.raises(ValueError, match=f"^{name} must be > 0, got {value}$"):
        PowerThreshold(alpha, beta)


def test_bad_losses(model: nn.Module, x: Tensor) -> None:
    clipper = PerSampleClipper(model, 1.0)
    losses = square_loss(model, x)
    with pytest.raises(ValueError, match=r"losses must have shape \(n,\).*got \(\)"):
        clipper.backward(losses.mean())
    with pytest.raises(ValueError, match="losses must have shape"):
        clipper.backward(model(x))
    with torch.no_grad(), pytest.raises(ValueError, match="gradients enabled"):
        clipper.backward(square_loss(model, x))
    with pytest.raises(ValueError, match="offset must be between 0 and total - n = 0, got 1"):
        clipper.backward(losses, offset=1)
    with pytest.raises(ValueError, match=r"threshold must hold one value per sample \(8\), got 3"):
        PerSampleClipper(model, torch.ones(3)).backward(losses)
    with pytest.raises(ValueError, match=r"threshold must return a tensor of shape \(8,\)"):
        PerSampleClipper(model, lambda k, norms: norms.mean()).backward(square_loss(model, x))


def test_losses_that_mix_samples(model: nn.Module, x: Tensor) -> None:
    losses = square_loss(model, x)
    for mixed in (losses / losses.detach().mean() * losses.mean(), losses.softmax(0)):
        with pytest.raises(ValueError, match="losses must depend on one sample each"):
            PerSampleClipper(model, 1.0).norms(mixed)
    out = model(x)
    with pytest.raises(ValueError, match="losses must depend on one sample each"):
        PerSampleClipper(model, 1.0).norms((out @ out.t()).square().sum(1))


class Centred(nn.Module):
    """A layer below a statistic of the batch: a sub-graph that carries data."""

    def __init__(self) -> None:
        super().__init__()
        self.below, self.above = nn.Linear(6, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.below(x)
        return self.above(hidden - hidden.mean(0))


@pytest.mark.parametrize("build", [Power, Centred])
@pytest.mark.parametrize("bad", [math.inf, math.nan])
def test_a_lost_sample_never_reaches_a_gradient(build: type[nn.Module], bad: float) -> None:
    """Where a node is differentiated by itself, or a sub-graph carries data, the batch may be lost; NaN is not kept."""
    torch.manual_seed(0)
    net, x = build().double(), torch.randn(4, 6).double()
    clipper = PerSampleClipper(net, 0.5)
    clipper.backward(square_loss(net, x))
    x[1, 2] = bad
    before = flat_gradient(net)
    stats = clipper.backward(square_loss(net, x))
    assert stats.dropped.item() >= 1
    assert flat_gradient(net).isfinite().all()
    assert stats.dropped.item() < 4 or torch.equal(flat_gradient(net), before)


def test_a_statistic_of_the_batch_in_the_middle_is_right(x: Tensor) -> None:
    """Layers below it see several samples in one loss: their output is what the samples meet, and is pulled back."""
    torch.manual_seed(0)
    below, above = nn.Linear(6, 4).double(), nn.Linear(4, 2).double()
    net = nn.ModuleList([below, above])

    def losses() -> Tensor:
        hidden = below(x)
        return above(hidden - hidden.mean(0)).square().sum(1)

    rows = []
    for k in range(8):
        grads = torch.autograd.grad(losses()[k], list(net.parameters()))
        rows.append(torch.cat([g.flatten() for g in grads]))
    stats = PerSampleClipper(net, 0.5).backward(losses())
    torch.testing.assert_close(stats.norms, torch.stack(rows).norm(dim=1))
    torch.testing.assert_close(flat_gradient(net), clipped_mean(torch.stack(rows), torch.full((8,), 0.5)))


def test_refused_layers(x: Tensor) -> None:
    net = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4)).double()
    with pytest.raises(ValueError, match=r"BatchNorm1d '1' in training mode.*use GroupNorm.*batch_norm='frozen'"):
        PerSampleClipper(net, 1.0).backward(square_loss(net, x))
    PerSampleClipper(net.eval(), 1.0).backward(square_loss(net, x))
    tokens = torch.randint(0, 5, (4, 3))
    for option in ("scale_grad_by_freq", "sparse"):
        table = nn.Embedding(5, 2, **{option: True})
        with pytest.raises(ValueError, match=f"{option} must be False in nn.Embedding"):
            PerSampleClipper(table, 1.0).backward(square_loss(table, tokens))


def test_closed(model: nn.Module, x: Tensor) -> None:
    with PerSampleClipper(model, 1.0) as clipper:
        clipper.norms(square_loss(model, x))
    with pytest.raises(RuntimeError, match="closed"):
        clipper.norms(square_loss(model, x))
    clipper.close()
