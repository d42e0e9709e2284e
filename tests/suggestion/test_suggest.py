"""Thresholds from norms of known distributions, and norms against one backward a sample."""

from __future__ import annotations

import doctest
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import clipbench.suggestion.proposal
from clipbench import PerSampleClipper, PowerThreshold, suggest
from clipbench.suggestion import Norms, propose
from clipbench.suggestion.proposal import tail_index

COUNT = 20_000


def norms(samples: Tensor) -> Norms:
    positions = torch.arange(len(samples), dtype=torch.float64) % 10 + 1
    return Norms(samples, positions, samples[:100], {"a": samples[:100]}, {"a": samples[:100]})


def pareto(index: float) -> Tensor:
    uniform = torch.rand(COUNT, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return uniform.clamp_min(1e-12) ** (-1 / index)


@pytest.mark.parametrize(("index", "wanted"), [(1.5, 1.5), (1.8, 1.8), (5.0, 2.0), (0.7, 1.1)])
def test_beta_is_the_tails_index_within_the_theory(index: float, wanted: float) -> None:
    assert tail_index(pareto(index)) == pytest.approx(wanted, abs=0.1)


@pytest.mark.parametrize("share", [0.02, 0.1, 0.5])
def test_each_threshold_clips_its_share(share: float) -> None:
    measured = norms(pareto(1.5))
    found = propose(measured, share)
    tau = PowerThreshold(found.alpha, found.beta)(measured.positions, measured.samples)
    assert float((measured.samples > tau).double().mean()) == pytest.approx(share, abs=0.001)
    assert found.sample_share == pytest.approx(share, abs=0.001)
    assert found.norm_share == pytest.approx(share, abs=0.02)
    assert found.norm == pytest.approx(float(measured.gradients.quantile(1 - share)), rel=0.1)


def test_what_is_not_finite_is_left_out() -> None:
    values = torch.arange(1.0, 101.0, dtype=torch.float64)
    values[50] = float("nan")
    values[60] = float("inf")
    assert propose(norms(values), 0.1).norm == pytest.approx(90, abs=1)


def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="none")


def test_norms_are_those_of_the_gradients() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    loader = [(torch.randn(6, 4, dtype=torch.float64), torch.randint(3, (6,))) for _ in range(5)]
    found = suggest(model, loader, loss, batches=3)
    params = dict(model.named_parameters())
    samples, whole, spectral = [], [], []
    for batch in loader[:3]:
        for one in loss(model, batch):
            grads = torch.autograd.grad(one, list(params.values()), retain_graph=True)
            samples.append(sum(float(g.square().sum()) for g in grads) ** 0.5)
        grads = torch.autograd.grad(loss(model, batch).mean(), list(params.values()))
        whole.append(sum(float(g.square().sum()) for g in grads) ** 0.5)
        spectral.append(float(torch.linalg.svdvals(grads[0]).max()))
    assert found.norms.samples.tolist() == pytest.approx(samples)
    assert found.norms.gradients.tolist() == pytest.approx(whole)
    assert found.norms.spectral["0.weight"].tolist() == pytest.approx(spectral)
    assert set(found.norms.layers) == set(params)
    assert all(param.grad is None for param in params.values())
    stats = PerSampleClipper(model, PowerThreshold(found.alpha, found.beta)).backward(loss(model, loader[0]))
    assert 0 <= float(stats.clipped_fraction) < 1


def test_the_table() -> None:
    found = propose(norms(pareto(1.5)))
    lines = str(found).splitlines()
    assert len(lines) == 5
    assert f"PowerThreshold(alpha={found.alpha:.3g}, beta={found.beta:.3g}) clips 10.0 %" in lines[1]
    assert f"NormClip({found.norm:.3g})" in lines[2]


@pytest.mark.parametrize(
    ("words", "message"),
    [({"batches": 0}, "batches must be >= 1, got 0"), ({"share": 1.0}, "share must be between 0 and 1, got 1.0")],
)
def test_bad_input(words: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        suggest(nn.Linear(2, 1), [(torch.ones(1, 2), torch.zeros(1))], loss, **words)
    with pytest.raises(ValueError, match="loader must give at least one batch"):
        suggest(nn.Linear(2, 1), [], loss)


def test_the_example() -> None:
    result = doctest.testmod(clipbench.suggestion.proposal)
    assert (result.attempted > 0, result.failed) == (True, 0)
