"""Rules on the update: the optimizer's own bits where nothing is clipped, the twin's numbers where something is."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from clipbench.clipping import Clipper, MixClip, NoClip, NormalizedUpdate, NormClip, RmsClip, SpectralClip
from clipbench.training.optimizers import muon
from clipbench.training.update import Update
from tests.clipping.test_rules import SHAPES, gradients, module
from tests.reference import rules

RATES = [0.1, 0.05, 0.2]


def moves(rule: Clipper, steps: list[rules.Arrays], momentum: float = 0.9) -> list[rules.Arrays]:
    """(θ_before − θ_after)/η of every step, with SGD under changing rates."""
    holder = module()
    optimizer = torch.optim.SGD(holder.parameters(), lr=1.0, momentum=momentum)
    update = Update(rule, optimizer, list(holder.named_parameters()))
    out = []
    for step, grads in enumerate(steps):
        optimizer.param_groups[0]["lr"] = rate = RATES[step % len(RATES)]
        before = {name: p.detach().clone() for name, p in holder.named_parameters()}
        for name, parameter in holder.named_parameters():
            parameter.grad = torch.tensor(grads[name])
        update.before()
        optimizer.step()
        update.after()
        out.append({name: ((before[name] - p.detach()) / rate).numpy() for name, p in holder.named_parameters()})
    return out


TWINS = {
    "none": (NoClip, lambda steps: rules.sgd_updates(steps, 0.9)),
    "norm": (
        lambda: NormClip(2.0),
        lambda steps: [rules.scaled(u, min(1.0, 2.0 / rules.total_norm(u))) for u in rules.sgd_updates(steps, 0.9)],
    ),
    "normalized": (
        NormalizedUpdate,
        lambda steps: [rules.scaled(u, 1 / rules.total_norm(u)) for u in rules.sgd_updates(steps, 0.9)],
    ),
    "mix_clip": (lambda: MixClip(1.0, 0.7, 0.1), lambda steps: rules.mix_clip(steps, 1.0, 0.7, 0.9)),
    "mix_clip, at times": (lambda: MixClip(20.0, 0.7, 0.1), lambda steps: rules.mix_clip(steps, 20.0, 0.7, 0.9)),
    "rms_clip": (lambda: RmsClip(0.9, 1e-6), lambda steps: rules.rms_clip(steps, 0.9, 0.9, 1e-6)),
}


@pytest.mark.parametrize("name", TWINS)
def test_equals_its_twin_at_every_step(name: str) -> None:
    make, twin = TWINS[name]
    steps = gradients()[:30]
    for mine, theirs in zip(moves(make(), steps), twin(steps), strict=True):
        largest = max(np.abs(g).max() for g in theirs.values())
        for key in SHAPES:
            assert np.abs(mine[key] - theirs[key]).max() <= 1e-9 * largest + 1e-12, key


def test_clipped_muon_clamps_the_momentums_singular_values() -> None:
    steps = gradients()[:20]
    for mine, momentum in zip(moves(SpectralClip(1.0, skip=()), steps), rules.sgd_updates(steps, 0.9), strict=True):
        u, s, v = np.linalg.svd(momentum["matrix"], full_matrices=False)
        np.testing.assert_allclose(mine["matrix"], (u * np.minimum(s, 1.0)) @ v, atol=1e-6)


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw", "muon"])
def test_where_nothing_is_clipped_the_weights_keep_the_optimizers_bits(optimizer: str) -> None:
    def train(rule: Clipper | None) -> list[torch.Tensor]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))
        made = {
            "sgd": lambda: torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1),
            "adam": lambda: torch.optim.Adam(model.parameters(), lr=0.1, weight_decay=0.1),
            "adamw": lambda: torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.1),
            "muon": lambda: muon(model, lr=0.1, adam_on=()),
        }[optimizer]()
        update = None if rule is None else Update(rule, made, list(model.named_parameters()))
        draws = torch.Generator().manual_seed(1)
        for _ in range(5):
            model(torch.randn(16, 4, generator=draws)).square().mean().backward()
            if update is not None:
                update.before()
            made.step()
            if update is not None:
                update.after()
            made.zero_grad()
        return [p.detach() for p in model.parameters()]

    for plain, ruled in zip(train(None), train(NormClip(float("inf"))), strict=True):
        assert torch.equal(plain, ruled)
    clipped = train(NormClip(1e-3))
    assert any(not torch.equal(x, y) for x, y in zip(train(None), clipped, strict=True))


def test_decoupled_weight_decay_is_no_part_of_the_update() -> None:
    weight = nn.Parameter(torch.full((3,), 2.0))
    optimizer = torch.optim.AdamW([weight], lr=0.1, weight_decay=0.5)
    update = Update(NormClip(1e-6), optimizer, [("weight", weight)])
    weight.grad = torch.ones(3)
    update.before()
    optimizer.step()
    update.after()
    torch.testing.assert_close(weight.detach(), torch.full((3,), 2.0 * (1 - 0.1 * 0.5)), atol=1e-6, rtol=0)


def test_a_parameter_without_gradient_stays() -> None:
    used, unused = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([used, unused], lr=0.1)
    update = Update(NormClip(0.5), optimizer, [("used", used), ("unused", unused)])
    used.grad = torch.ones(2)
    update.before()
    optimizer.step()
    stats = update.after()
    assert torch.equal(unused.detach(), torch.ones(2))
    assert float(stats.clipped_fraction) == 1.0
    torch.testing.assert_close((1 - used.detach()).norm(), torch.tensor(0.05))


def test_a_rule_continues_from_its_state() -> None:
    steps = gradients()[:20]
    first = RmsClip(0.9)
    moves(first, steps[:10])
    second = RmsClip(0.9)
    second.load_state_dict(first.state_dict())
    for name in SHAPES:
        assert torch.equal(first.state_dict()["squares"][name], second.state_dict()["squares"][name])
    assert first.state_dict()["steps"] == second.state_dict()["steps"] == dict.fromkeys(SHAPES, 10)
