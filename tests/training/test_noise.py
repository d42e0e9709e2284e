"""What the noises add to the gradient, and when."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensor, FakeTensorMode

from clipbench.training.noise import Isotropic, Noise, RankOne


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.filters = nn.Conv2d(2, 6, 3)
        self.matrix = nn.Linear(5, 4, bias=False)
        self.scalar = nn.Parameter(torch.tensor(1.0))
        self.unused = nn.Parameter(torch.ones(3))


def added(noise: Noise, seed: int = 0) -> dict[str, Tensor]:
    """What `noise` adds to a gradient of ones; `unused` has none."""
    model = Net()
    for name, parameter in model.named_parameters():
        parameter.grad = None if name == "unused" else torch.ones_like(parameter)
    noise(model.named_parameters(), torch.Generator().manual_seed(seed))
    assert model.unused.grad is None
    return {name: p.grad - 1 for name, p in model.named_parameters() if p.grad is not None}


def is_zero(difference: dict[str, Tensor]) -> bool:
    return all(not bool(value.any()) for value in difference.values())


def test_rank_one_noise_has_rank_one_and_the_drawn_size() -> None:
    for name, value in added(RankOne(probability=1.0)).items():
        singular = torch.linalg.svdvals(value.reshape(value.shape[0], -1) if value.dim() else value.view(1, 1))
        assert singular[0] >= 5 * (1 - 1e-5), name  # |s| is at least the scale
        assert torch.all(singular[1:] <= 1e-5 * singular[0]), name


def test_rank_one_strengths_are_two_sided_pareto() -> None:
    """The single entry of `scalar` gets ±s: its law over many steps is that of s."""
    noise, parameter = RankOne(probability=1.0, index=1.1, scale=5.0), nn.Parameter(torch.zeros(()))
    draws, values = torch.Generator().manual_seed(0), []
    for _ in range(3000):
        parameter.grad = torch.zeros(())
        noise([("scalar", parameter)], draws)
        values.append(float(parameter.grad))
    sizes = np.abs(values)
    assert stats.kstest(sizes, stats.pareto(1.1, scale=5.0).cdf).pvalue > 1e-3
    assert stats.kstest(sizes, stats.pareto(1.5, scale=5.0).cdf).pvalue < 1e-3
    assert abs(np.sign(values).mean()) < 4 / math.sqrt(3000)


def test_each_gradient_gets_its_own_strength() -> None:
    differences = added(RankOne(probability=1.0))
    sizes = {round(float(value.norm()), 4) for value in differences.values()}
    assert len(sizes) == len(differences)


@pytest.mark.parametrize("kind", [RankOne, Isotropic])
def test_a_step_is_hit_as_a_whole_with_the_probability(kind: Any) -> None:
    hits = []
    for seed in range(400):
        values = added(kind(probability=0.1), seed).values()
        changed = {bool(value.any()) for value in values}
        assert len(changed) == 1
        hits.append(changed.pop())
    assert pytest.approx(np.mean(hits), abs=4 * math.sqrt(0.09 / 400)) == 0.1


@pytest.mark.parametrize("kind", [RankOne, Isotropic])
def test_probability_zero_adds_nothing_even_where_a_draw_overflows(kind: Any) -> None:
    assert is_zero(added(kind(probability=0.0, noise="pareto", index=0.001)))


def test_isotropic_noise_has_the_drawn_length_over_all_parameters() -> None:
    lengths, first = [], []
    for seed in range(2000):
        vector = torch.cat([value.flatten() for value in added(Isotropic(noise="pareto", index=1.5), seed).values()])
        lengths.append(float(vector.norm()))
        first.append(float(vector[0] / vector.norm()))
    assert stats.kstest(lengths, stats.pareto(1.5).cdf).pvalue > 1e-3
    # One coordinate of a uniform unit vector in d dimensions: (1 + x)/2 is Beta((d − 1)/2, (d − 1)/2).
    shape = (len(vector) - 1) / 2
    assert stats.kstest((np.array(first) + 1) / 2, stats.beta(shape, shape).cdf).pvalue > 1e-3


@pytest.mark.parametrize("kind", [RankOne, Isotropic])
def test_noise_follows_the_generator_alone(kind: Any) -> None:
    torch.manual_seed(0)
    first = added(kind(probability=1.0), 3)
    torch.manual_seed(1)
    again, other = added(kind(probability=1.0), 3), added(kind(probability=1.0), 4)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize("kind", [RankOne, Isotropic])
def test_noise_never_waits_for_the_device(kind: Any) -> None:
    """Under FakeTensorMode a gradient has no value to wait for, and whoever reads one fails."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        model = Net()
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        kind()(model.named_parameters(), torch.Generator())
        grads = [parameter.grad for parameter in model.parameters()]
        assert len(grads) == 5
        assert all(isinstance(grad, FakeTensor) for grad in grads)
        with pytest.raises(DataDependentOutputException):
            grads[0].sum().item()


@pytest.mark.parametrize("kind", [RankOne, Isotropic])
def test_no_gradients_at_all(kind: Any) -> None:
    weight = nn.Parameter(torch.ones(2, 2))
    kind()([("a", weight)], torch.Generator())
    assert weight.grad is None
    assert torch.equal(weight.detach(), torch.ones(2, 2))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"probability": 1.5}, r"probability must be in \[0, 1\], got 1\.5"),
        ({"probability": math.nan}, r"probability must be in \[0, 1\], got nan"),
        ({"noise": "gauss"}, "noise must be one of student_t, pareto, alpha_stable, got gauss"),
        ({"index": 0.0}, r"index must be finite and > 0, got 0\.0"),
        ({"scale": -1.0}, r"scale must be finite and > 0, got -1\.0"),
    ],
)
@pytest.mark.parametrize("kind", [RankOne, Isotropic])
def test_bad_options(kind: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match="^" + message):
        kind(**options)
