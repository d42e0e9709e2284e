"""Rules against implementations by others, where one is installed (extra `oracles`): nothing of theirs is copied here.

An optimizer's own clipping is seen through its first moment, which with β₁ = 0 is the gradient that it lets through.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from clipbench.clipping import (
    AdaGC,
    AdaptiveGradientClip,
    Clipper,
    NormalizedUpdate,
    NormClip,
    PerTensorNorm,
    RmsClip,
    SpikeClip,
    StableSpikeClip,
    ValueClip,
)
from clipbench.per_sample import PerSampleClipper

pytestmark = pytest.mark.slow  # the packages take their time to be imported

SHAPES = {"matrix": (4, 3), "filter": (3, 2, 3, 3), "vector": (5,)}
Named = list[tuple[str, nn.Parameter]]


def parameters(seed: int = 0) -> Named:
    """In float64, one with a row of zeros."""
    draw = torch.Generator().manual_seed(seed)
    made = {name: torch.randn(shape, generator=draw, dtype=torch.float64) for name, shape in SHAPES.items()}
    made["matrix"][1] = 0.0
    return [(name, nn.Parameter(value)) for name, value in made.items()]


def gradients(steps: int) -> list[dict[str, Tensor]]:
    """Steps of gradients whose size wanders over two orders of magnitude, with a row of zeros and single spikes."""
    draw = torch.Generator().manual_seed(1)
    found = []
    for step in range(steps):
        size = 10.0 ** (2 * torch.rand((), generator=draw).item() - 1)
        made = {name: size * torch.randn(shape, generator=draw, dtype=torch.float64) for name, shape in SHAPES.items()}
        made["matrix"][2] = 0.0
        if step % 5 == 4:  # the tenth among them, where warm-ups end
            made["matrix"][0, 1] = 1e4
            made["vector"] *= 50
        found.append(made)
    return found


def give(named: Named, step: dict[str, Tensor]) -> Named:
    for name, parameter in named:
        parameter.grad = step[name].clone()
    return named


def clipped(clipper: Clipper, steps: list[dict[str, Tensor]]) -> list[dict[str, Tensor]]:
    """What our rule makes of each step's gradients."""
    named = parameters()
    found = []
    for step in steps:
        clipper(give(named, step))
        found.append({name: parameter.grad.clone() for name, parameter in named if parameter.grad is not None})
    return found


def by_optimizer(make: Callable[[Any], Any], steps: list[dict[str, Tensor]]) -> list[dict[str, Tensor]]:
    """The first moment after each step, for an optimizer with β₁ = 0."""
    named = parameters()
    optimizer = make([parameter for _, parameter in named])
    found = []
    for step in steps:
        give(named, step)
        optimizer.step()
        found.append({n: optimizer.state[p]["exp_avg"].detach().clone().view(SHAPES[n]) for n, p in named})
    return found


def by_optax(rule: Any, steps: list[dict[str, Tensor]], each: bool = False) -> list[dict[str, Tensor]]:
    """What a transformation of optax makes of each step's gradients; `each`: of every parameter's alone."""
    import jax

    with jax.enable_x64(True):
        weights = {name: jax.numpy.asarray(p.detach().numpy()) for name, p in parameters()}

        def through(tree: dict[str, Tensor]) -> dict[str, Tensor]:
            own = {name: weights[name] for name in tree}
            out, _ = rule.update({n: jax.numpy.asarray(g.numpy()) for n, g in tree.items()}, rule.init(own), own)
            return {name: torch.tensor(np.asarray(value)) for name, value in out.items()}

        if each:
            return [{n: through({n: g})[n] for n, g in step.items()} for step in steps]
        return [through(step) for step in steps]


def agree(
    found: list[dict[str, Tensor]],
    wanted: list[dict[str, Tensor]],
    raw: list[dict[str, Tensor]],
    tolerance: float = 1e-12,
) -> None:
    """Largest difference over the largest entry of the step's whole gradient; and some steps are clipped."""
    acted = 0
    for step, (own, other, before) in enumerate(zip(found, wanted, raw, strict=True)):
        size = max(float(value.abs().max()) for value in other.values())
        for name, value in other.items():
            assert float((own[name] - value).abs().max()) <= tolerance * size, (step, name)
        acted += any(float((own[n] - before[n]).abs().max()) > 1e-3 * size for n in own)
    assert acted


def test_agc_is_timms() -> None:
    agc = pytest.importorskip("timm.utils.agc")
    steps, named = gradients(5), parameters()
    wanted = []
    for step in steps:
        agc.adaptive_clip_grad([p for _, p in give(named, step)], clip_factor=0.3, eps=1e-3)
        wanted.append({name: p.grad.clone() for name, p in named})
    agree(clipped(AdaptiveGradientClip(0.3), steps), wanted, steps)


def test_agc_is_optaxs() -> None:
    """Its units are the other way round unless told, by one axis for all: one kind of parameter at a time."""
    optax = pytest.importorskip("optax")
    steps = gradients(5)
    own = clipped(AdaptiveGradientClip(0.3), steps)
    for name, axis in (("matrix", 1), ("filter", (1, 2, 3)), ("vector", None)):
        only = [{name: step[name]} for step in steps]
        wanted = by_optax(optax.adaptive_grad_clip(0.3, 1e-3, axis=axis), only)
        agree([{name: step[name]} for step in own], wanted, only)


def test_agc_is_pytorch_optimizers() -> None:
    theirs = pytest.importorskip("pytorch_optimizer.optimizer.agc")
    steps, weights = gradients(5), dict(parameters())
    wanted = [{n: theirs.agc(weights[n].detach(), g, 1e-3, 0.3) for n, g in step.items()} for step in steps]
    agree(clipped(AdaptiveGradientClip(0.3), steps), wanted, steps)


def test_adagc_is_pytorch_optimizers() -> None:
    theirs = pytest.importorskip("pytorch_optimizer")
    steps = gradients(40)
    wanted = by_optimizer(
        lambda params: theirs.AdaGC(
            params, betas=(0.0, 0.9), beta=0.9, lambda_rel=1.05, lambda_abs=1.0, warmup_steps=10, weight_decay=0.0,
            eps=1e-15, foreach=False,
        ),
        steps,
    )  # fmt: skip
    agree(clipped(AdaGC(1.05, 1.0, 0.9, warmup=10), steps), wanted, steps, 1e-6)  # its global norm is in float32


def test_spam_is_pytorch_optimizers() -> None:
    """All entries of its random mask, and no reset of its moments, which are the optimizer's part."""
    theirs = pytest.importorskip("pytorch_optimizer")
    steps = gradients(40)
    wanted = by_optimizer(
        lambda params: theirs.SPAM(
            params, betas=(0.0, 0.9), density=1.0, threshold=20, grad_accu_steps=10, update_proj_gap=10**6,
            weight_decay=0.0, foreach=False,
        ),
        steps,
    )  # fmt: skip
    agree(clipped(SpikeClip(20.0, 0.9, warmup=10), steps), wanted, steps)


def test_stable_spam_is_pytorch_optimizers() -> None:
    theirs = pytest.importorskip("pytorch_optimizer")
    steps = gradients(40)
    wanted = by_optimizer(
        lambda params: theirs.StableSPAM(
            params, betas=(0.0, 0.9), gamma1=0.7, gamma2=0.9, theta=0.99, update_proj_gap=10**6, eps=1e-8
        ),
        steps,
    )
    agree(clipped(StableSpikeClip(0.99, 0.7, 0.9, 1e-8), steps), wanted, steps)


def test_update_clipping_is_stable_adamws() -> None:
    """What its step is shorter by than Adam's of the same moments, against our factor on the same update."""
    theirs = pytest.importorskip("pytorch_optimizer")
    steps, named = gradients(30), parameters()
    optimizer = theirs.StableAdamW(
        [p for _, p in named], lr=1e-3, betas=(0.0, 0.9), eps=1e-6, weight_decay=0.0, foreach=False
    )
    rule, raw, found, wanted = RmsClip(0.9, 1e-6), [], [], []
    for step in steps:
        before = {name: p.detach().clone() for name, p in give(named, step)}
        rule.observe(named)
        optimizer.step()
        moments = {name: optimizer.state[p] for name, p in named}
        adam = {n: m["exp_avg"] / (m["exp_avg_sq"].sqrt() + 1e-6) for n, m in moments.items()}
        wanted.append({name: (before[name] - p.detach()) / 1e-3 for name, p in named})
        raw.append(adam)
        updates = [(name, nn.Parameter(torch.zeros_like(value))) for name, value in adam.items()]
        rule(give(updates, adam))
        found.append({name: p.grad.clone() for name, p in updates if p.grad is not None})
    agree(found, wanted, raw, 1e-10)  # theirs is read off weights of size 1


@pytest.mark.parametrize("tau", [0.5, 5.0])
def test_norm_clipping_is_optaxs_and_torchs(tau: float) -> None:
    steps = gradients(20)
    own, named = clipped(NormClip(tau), steps), parameters()
    torchs = []
    for step in steps:
        nn.utils.clip_grad_norm_([p for _, p in give(named, step)], tau)
        torchs.append({name: p.grad.clone() for name, p in named})
    agree(own, torchs, steps, 1e-5)  # it divides by ‖g‖ + 1e-6
    optax = pytest.importorskip("optax")
    agree(own, by_optax(optax.clip_by_global_norm(tau), steps), steps)


def test_per_tensor_norm_is_optaxs() -> None:
    optax = pytest.importorskip("optax")
    steps = gradients(20)
    own = clipped(PerTensorNorm(2.0), steps)
    agree(own, by_optax(optax.clip_by_global_norm(2.0), steps, each=True), steps)
    for name, shape in SHAPES.items():
        only = [{name: step[name]} for step in steps]
        rms = 2.0 / float(np.prod(shape)) ** 0.5
        agree([{name: step[name]} for step in own], by_optax(optax.clip_by_block_rms(rms), only), only)


def test_value_clipping_is_optaxs() -> None:
    optax = pytest.importorskip("optax")
    steps = gradients(20)
    agree(clipped(ValueClip(0.7), steps), by_optax(optax.clip(0.7), steps), steps)


def test_normalised_updates_are_optaxs() -> None:
    optax = pytest.importorskip("optax")
    steps = gradients(20)
    wanted = by_optax(optax.normalize_by_update_norm(1.0, 0.0), steps)
    agree(clipped(NormalizedUpdate(), steps), wanted, steps)


def test_per_sample_clipping_is_optaxs() -> None:
    """Which gives the sum of the samples' clipped gradients, from all of them."""
    optax = pytest.importorskip("optax")
    import jax

    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    x = torch.randn(7, 5, dtype=torch.float64)
    params = list(net.parameters())
    rows = [torch.autograd.grad(loss, params, retain_graph=True) for loss in net(x).square().sum(1)]
    tau = float(torch.stack([torch.cat([g.flatten() for g in row]).norm() for row in rows]).median())
    with jax.enable_x64(True):
        stacked = [jax.numpy.asarray(torch.stack(column).numpy()) for column in zip(*rows, strict=True)]
        sums, count = optax.per_example_global_norm_clip(stacked, tau)
        wanted = [torch.tensor(np.asarray(each)) / len(x) for each in sums]
    stats = PerSampleClipper(net, tau).backward(net(x).square().sum(1))
    for parameter, right in zip(params, wanted, strict=True):
        torch.testing.assert_close(parameter.grad, right, rtol=1e-11, atol=1e-13)
    assert float(stats.clipped_fraction) * len(x) == pytest.approx(int(count)) != 0
