"""Heavy-tailed draws against scipy's distributions: quantiles and characteristic functions."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from clipbench.studies import heavy_tails
from clipbench.studies.base import random_generator

N = 400_000


@pytest.mark.parametrize("index", [1.2, 1.5, 1.8])
def test_pareto_is_centred_and_one_sided(index):
    x = heavy_tails.pareto((N,), index, random_generator(1, "noise"))
    mean = index / (index - 1)
    assert x.min() >= 1 - mean
    assert stats.kstest(x + mean, stats.pareto(index).cdf).pvalue > 1e-3


@pytest.mark.parametrize("index", [1.2, 1.5, 1.8])
def test_student_t(index):
    x = heavy_tails.student_t((N,), index, random_generator(2, "noise"))
    assert stats.kstest(x, stats.t(index).cdf).pvalue > 1e-3


@pytest.mark.parametrize("index", [1.2, 1.5, 1.8])
def test_alpha_stable_has_the_characteristic_function_of_full_skew(index):
    x = heavy_tails.alpha_stable((N,), index, random_generator(3, "noise"))
    for t in (-2.0, -0.5, 0.2, 1.0, 2.0):
        wanted = np.exp(-(abs(t) ** index) * (1 - 1j * np.sign(t) * np.tan(np.pi * index / 2)))
        assert abs(np.exp(1j * t * x).mean() - wanted) < 5 / np.sqrt(N)
        mirrored = np.conj(wanted)
        assert abs(wanted - mirrored) > 20 / np.sqrt(N) or abs(wanted.imag) < 0.02  # the sign of the skew is seen


def test_alpha_stable_has_scipys_quantiles():
    x = heavy_tails.alpha_stable((N,), 1.5, random_generator(4, "noise"))
    levels = np.array([0.05, 0.25, 0.5, 0.75, 0.95])
    wanted = stats.levy_stable.ppf(levels, 1.5, 1.0)
    density = stats.levy_stable.pdf(wanted, 1.5, 1.0)
    error = np.sqrt(levels * (1 - levels) / N) / density
    assert (np.abs(np.quantile(x, levels) - wanted) < 5 * error).all()


@pytest.mark.parametrize(
    ("noise", "index", "word"), [("cauchy", 1.5, "noise"), ("pareto", 1.0, "index"), ("pareto", 2.0, "index")]
)
def test_bad_input(noise, index, word):
    with pytest.raises(ValueError, match=f"^{word} must be "):
        heavy_tails.check(noise, index)
