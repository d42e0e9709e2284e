"""The samplers against scipy's distributions, which share no code with them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats

from clipbench.data import tails

N = 40_000


def sample(noise: str, index: float) -> np.ndarray:
    return tails.SAMPLERS[noise]((N,), index, torch.Generator().manual_seed(1)).numpy()


def p_value(noise: str, index: float) -> float:
    """Kolmogorov–Smirnov: small where the sample is not from the distribution."""
    if noise == "student_t":
        reference = stats.t(index)
    elif noise == "pareto":
        values = sample(noise, index)
        assert abs(np.sign(values).mean()) < 4 / math.sqrt(N)
        return float(stats.kstest(np.abs(values), stats.pareto(index).cdf).pvalue)
    else:
        reference = {1.0: stats.cauchy(), 2.0: stats.norm(scale=math.sqrt(2))}[index]
    return float(stats.kstest(sample(noise, index), reference.cdf).pvalue)


INDICES = {"student_t": (0.7, 1.5, 5.0), "pareto": (0.5, 1.1, 3.0), "alpha_stable": (1.0, 2.0)}


@pytest.mark.parametrize(("noise", "index"), [(n, index) for n, group in INDICES.items() for index in group])
def test_distribution(noise: str, index: float) -> None:
    assert p_value(noise, index) > 1e-3


@pytest.mark.parametrize("noise", ["student_t", "pareto"])
def test_the_comparison_notices_another_index(noise: str, monkeypatch: pytest.MonkeyPatch) -> None:
    right = tails.SAMPLERS[noise]
    monkeypatch.setitem(tails.SAMPLERS, noise, lambda shape, index, g: right(shape, 1.3 * index, g))
    assert p_value(noise, 1.5) < 1e-3


@pytest.mark.parametrize("index", [0.8, 1.3, 1.7])
def test_alpha_stable_has_its_characteristic_function(index: float) -> None:
    values = sample("alpha_stable", index)
    for place in (0.3, 1.0, 2.0):
        assert np.cos(place * values).mean() == pytest.approx(math.exp(-(place**index)), abs=4 / math.sqrt(N))
        assert np.sin(place * values).mean() == pytest.approx(0.0, abs=4 / math.sqrt(N))


def test_alpha_stable_sums_keep_their_law() -> None:
    """Two draws added are 2^{1/α} times one draw: what the name says."""
    values = sample("alpha_stable", 1.5)
    halves = (values[: N // 2] + values[N // 2 :]) / 2 ** (1 / 1.5)
    assert stats.ks_2samp(halves, sample("alpha_stable", 1.5)[::2]).pvalue > 1e-3


@pytest.mark.parametrize("noise", tails.SAMPLERS)
def test_draw_is_scaled_float32_and_repeatable(noise: str) -> None:
    draws = [tails.draw(noise, (3, 4), 1.5, scale, torch.Generator().manual_seed(2)) for scale in (1.0, 1.0, 10.0)]
    assert draws[0].dtype == torch.float32
    assert draws[0].shape == (3, 4)
    assert torch.equal(draws[0], draws[1])
    torch.testing.assert_close(draws[2], 10 * draws[0])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("gauss", 1.0, 1.0), "noise must be one of student_t, pareto, alpha_stable, got gauss"),
        (("pareto", 0.0, 1.0), "index must be finite and > 0, got 0.0"),
        (("pareto", math.nan, 1.0), "index must be finite and > 0, got nan"),
        (("alpha_stable", 2.1, 1.0), "index must be <= 2 for alpha_stable, got 2.1"),
        (("student_t", 1.0, math.inf), "scale must be finite and > 0, got inf"),
    ],
)
def test_bad_parameters(arguments: tuple[str, float, float], message: str) -> None:
    with pytest.raises(ValueError, match="^" + message.replace(".", r"\.")):
        tails.check(*arguments)
