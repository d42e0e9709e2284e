"""The field's rules against their float64 twins, over steps with heavy-tailed gradients; and what they must not do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from clipbench.clipping import (
    AdaGC,
    AdaptiveGradientClip,
    AutoClip,
    Chain,
    Clipper,
    DeltaClip,
    ErrorFeedback,
    MixClip,
    NormClip,
    RmsClip,
    SmoothClip,
    SpectralClip,
    SpikeClip,
    StableSpikeClip,
    ValueClip,
    ZClip,
)
from tests.reference import rules

SHAPES = {"matrix": (6, 5), "filter": (4, 3, 2, 2), "vector": (7,), "scalar": ()}
STEPS = 60


def gradients(seed: int = 0) -> list[rules.Arrays]:
    rng = np.random.default_rng(seed)
    return [
        {name: rng.standard_normal(shape) * rng.pareto(1.5) for name, shape in SHAPES.items()} for _ in range(STEPS)
    ]


def module(dtype: torch.dtype = torch.float64, seed: int = 1) -> nn.Module:
    draws = torch.Generator().manual_seed(seed)
    holder = nn.Module()
    for name, shape in SHAPES.items():
        weight = torch.randn(shape, generator=draws, dtype=torch.float64).to(dtype)
        holder.register_parameter(name, nn.Parameter(weight))
    return holder


def run(clipper: Clipper, steps: list[rules.Arrays], holder: nn.Module | None = None) -> list[rules.Arrays]:
    holder = holder or module()
    out = []
    for grads in steps:
        for name, parameter in holder.named_parameters():
            parameter.grad = torch.tensor(grads[name], dtype=parameter.dtype)
        clipper(holder.named_parameters())
        out.append({name: p.grad.double().numpy().copy() for name, p in holder.named_parameters()})
    return out


def weights() -> rules.Arrays:
    return {name: p.detach().numpy() for name, p in module().named_parameters()}


TWINS: dict[str, tuple[Callable[[], Clipper], Callable[[list[rules.Arrays]], list[rules.Arrays]]]] = {
    "agc": (
        lambda: AdaptiveGradientClip(0.3, 1e-3),
        lambda steps: [rules.agc(weights(), grads, 0.3, 1e-3) for grads in steps],
    ),
    "autoclip": (lambda: AutoClip(30.0), lambda steps: rules.autoclip(steps, 30.0)),
    "zclip": (lambda: ZClip(0.9, 1.5, 10, 8.0), lambda steps: rules.zclip(steps, 0.9, 1.5, 10, 8.0, 1e-6)),
    "zclip, unbounded": (
        lambda: ZClip(0.9, 1.5, 10, float("inf")),
        lambda steps: rules.zclip(steps, 0.9, 1.5, 10, float("inf"), 1e-6),
    ),
    "adagc": (lambda: AdaGC(1.05, 1.0, 0.9, 10), lambda steps: rules.adagc(steps, 1.05, 1.0, 0.9, 10)),
    "spam": (lambda: SpikeClip(4.0, 0.9, 5), lambda steps: rules.spam(steps, 4.0, 0.9, 5)),
    "stable_spam": (
        lambda: StableSpikeClip(0.9, 0.7, 0.9, 1e-6),
        lambda steps: rules.stable_spam(steps, 0.9, 0.7, 0.9, 1e-6),
    ),
    "smooth": (lambda: SmoothClip(2.0), lambda steps: [rules.smooth(grads, 2.0) for grads in steps]),
    "delta": (lambda: DeltaClip(2.0, 0.2), lambda steps: [rules.delta_clip(grads, 2.0, 0.2) for grads in steps]),
    "u_clip": (lambda: ErrorFeedback(NormClip(5.0)), lambda steps: rules.u_clip(steps, 5.0)),
}


@pytest.mark.parametrize("name", TWINS)
def test_equals_its_twin_at_every_step(name: str) -> None:
    make, twin = TWINS[name]
    steps = gradients()
    for mine, theirs in zip(run(make(), steps), twin(steps), strict=True):
        largest = max(np.abs(g).max() for g in theirs.values())
        for key in SHAPES:
            assert np.abs(mine[key] - theirs[key]).max() <= 1e-6 * largest, key  # thresholds may be kept in float32


@pytest.mark.parametrize("name", TWINS)
def test_a_resumed_rule_goes_on_bit_for_bit(name: str) -> None:
    make, _ = TWINS[name]
    steps, first = gradients(), make()
    whole = run(make(), steps)
    run(first, steps[:25])
    second = make()
    second.load_state_dict(first.state_dict())
    for mine, theirs in zip(run(second, steps[25:]), whole[25:], strict=True):
        assert all(np.array_equal(mine[key], theirs[key]) for key in SHAPES)


@pytest.mark.parametrize("name", TWINS)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_one_lost_step_does_not_poison_the_next(name: str, bad: float) -> None:
    make, _ = TWINS[name]
    steps = gradients()[:40]
    steps[20]["matrix"][0, 0] = bad
    after = run(make(), steps)[21:]
    assert all(np.isfinite(g).all() for grads in after for g in grads.values())


def test_autoclip_remembers_more_steps_than_its_first_room_holds() -> None:
    """Room is doubled at 64 and at 128 steps; state taken in between goes on."""
    steps = [grads for seed in range(3) for grads in gradients(seed)]
    clipper = AutoClip(30.0)
    mine, twin = run(clipper, steps[:100]), rules.autoclip(steps, 30.0)
    assert clipper.state_dict()["history"].shape == (100,)
    fresh = AutoClip(30.0)
    fresh.load_state_dict(clipper.state_dict())
    for found, expected in zip([*mine, *run(fresh, steps[100:])], twin, strict=True):
        largest = max(np.abs(g).max() for g in expected.values())
        assert all(np.abs(found[key] - expected[key]).max() <= 1e-6 * largest for key in SHAPES)


@pytest.mark.parametrize("name", TWINS)
def test_zero_gradients_stay_zero(name: str) -> None:
    make, _ = TWINS[name]
    if name == "u_clip":
        return  # nothing was carried yet, as the next line would show too
    zero = [{key: np.zeros(shape) for key, shape in SHAPES.items()}] * 3
    assert all((g == 0).all() for grads in run(make(), zero) for g in grads.values())


def test_infinite_thresholds_change_nothing() -> None:
    steps = gradients()[:5]
    for clipper in (
        NormClip(float("inf")),
        SmoothClip(float("inf")),
        DeltaClip(float("inf")),
        ErrorFeedback(NormClip(float("inf"))),
        Chain([ValueClip(float("inf")), NormClip(float("inf"))]),
        AutoClip(100.0),
    ):
        for mine, grads in zip(run(clipper, steps), steps, strict=True):
            assert all(np.array_equal(mine[key], grads[key]) for key in SHAPES), type(clipper)


def test_a_chain_is_its_links_in_order() -> None:
    steps = gradients()[:5]
    chained = run(Chain([ValueClip(0.5), NormClip(1.0)]), steps)
    apart = run(NormClip(1.0), run(ValueClip(0.5), steps))
    turned = run(Chain([NormClip(1.0), ValueClip(0.5)]), steps)
    assert all(np.array_equal(x[key], y[key]) for x, y in zip(chained, apart, strict=True) for key in SHAPES)
    assert any(not np.array_equal(x[key], y[key]) for x, y in zip(chained, turned, strict=True) for key in SHAPES)
    with pytest.raises(ValueError, match="clippers must hold at least one"):
        Chain([])


def test_a_chain_says_what_its_links_said() -> None:
    holder = module()
    for name, parameter in holder.named_parameters():
        parameter.grad = torch.full(SHAPES[name], 3.0, dtype=torch.float64)
    whole = torch.cat([p.grad.flatten() for p in holder.parameters()]).norm()
    chain = Chain([NormClip(1e9), SpectralClip(1e-3)])
    stats = chain(holder.named_parameters())
    assert stats.norm is not None
    torch.testing.assert_close(stats.norm, whole)
    assert float(stats.clipped_fraction) == 1.0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: AdaptiveGradientClip(0.0), "clipping must be > 0, got 0.0"),
        (lambda: AutoClip(101), r"percentile must be in \[0, 100\], got 101"),
        (lambda: ZClip(1.0), r"coefficient must be in \[0, 1\), got 1.0"),
        (lambda: ZClip(score=0), "score must be > 0, got 0"),
        (lambda: AdaGC(warmup=0), "warmup must be >= 1, got 0"),
        (lambda: SpikeClip(-1.0), "factor must be > 0, got -1.0"),
        (lambda: AdaptiveGradientClip(eps=0.0), "eps must be > 0, got 0.0"),
        (lambda: AdaGC(relative=0.0), "relative must be > 0, got 0.0"),
        (lambda: AdaGC(absolute=0.0), "absolute must be > 0, got 0.0"),
        (lambda: ZClip(most=-1.0), "most must be > 0, got -1.0"),
        (lambda: ZClip(warmup=0), "warmup must be >= 1, got 0"),
        (lambda: SpikeClip(warmup=-1), "warmup must be >= 0, got -1"),
        (lambda: MixClip(1.0, 1.1), r"mix must be in \[0, 1\], got 1.1"),
        (lambda: MixClip(1.0, scale=0.0), "scale must be > 0, got 0.0"),
        (lambda: RmsClip(1.0), r"coefficient must be in \[0, 1\), got 1.0"),
        (lambda: RmsClip(eps=0.0), "eps must be > 0, got 0.0"),
        (lambda: StableSpikeClip(entry=1.0), r"entry must be in \[0, 1\), got 1.0"),
        (lambda: StableSpikeClip(second=1.0), r"second must be in \[0, 1\), got 1.0"),
        (lambda: StableSpikeClip(first=1.0), r"first must be in \[0, 1\), got 1.0"),
        (lambda: DeltaClip(1.0, 1.0), r"least must be in \[0, 1\), got 1.0"),
    ],
)
def test_bad_arguments_are_named(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        make()


def test_agc_leaves_the_head_alone() -> None:
    model = nn.ModuleDict({"body": nn.Linear(3, 3), "head": nn.Linear(3, 2)})
    for p in model.parameters():
        p.grad = torch.full_like(p, 100.0)
    AdaptiveGradientClip()(model.named_parameters())
    assert (model["head"].weight.grad == 100).all()
    assert (model["body"].weight.grad < 100).all()
