"""Descents and schedules of the rates against step-by-step twins; the study's choice, rows and resume."""

from __future__ import annotations

import math

import numpy as np
import pytest

from clipbench.studies import descent, rates_matrix
from clipbench.studies.base import random_generator
from clipbench.studies.descent import PROBLEMS, Settings, descend, descend_per_sample
from clipbench.studies.matrix_clip import clip_spectrum
from clipbench.studies.rates import RULES, Rates, mean_noise, sample_noise
from clipbench.studies.rates_matrix import RatesMatrix
from clipbench.studies.schedules import Constants, matrix_schedule, vector_schedule
from tests.reference import descent as reference

GRID = {
    "ps_clip": {"batch": [0.1, 0.5], "rate": [0.25, 0.5], "threshold": [1.0, 4.0]},
    "mini_batch": {"batch": [0.1, 0.5], "rate": [0.25, 0.5]},
    "normalised": {"rate": [1.0, 3.0]},
    "sgd": {"rate": [0.3, 1.0]},
    "norm_clip": {"rate": [3.0, 10.0], "threshold": [0.1, 0.3]},
}
SMALL = {
    "seed": 0, "problem": "quad", "power": 1.5, "margin": 0.05, "dimension": 3, "exponents": [5, 6, 7], "seeds": 8,
    "tuning_seeds": 5, "groups": 4, "select": "mean", "grid": GRID, "slope_from": 32, "slope_steps": 2,
}  # fmt: skip
CLIPPED = {"rate": [0.3, 1.0], "threshold": [0.3, 1.0]}
MATRIX = {k: v for k, v in SMALL.items() if k not in ("dimension", "grid")} | {
    "directions": "random", "side": 3,
    "grid": {"sgd": {"rate": [0.3]}, "spectral_clip": CLIPPED, "norm_clip": CLIPPED},
}  # fmt: skip


def finished(study):
    for _ in study.run():
        pass
    return study


def values(study):
    return [(row["step"], row["metric"], row["value"]) for row in study.rows]


@pytest.mark.parametrize("problem", PROBLEMS)
@pytest.mark.parametrize("method", ["mini_batch", "normalised", "sgd", "norm_clip"])
def test_descent_equals_its_twin(problem, method):
    """Three settings of different length share their noise."""
    noise = random_generator(1, "noise").standard_t(1.5, (40, 2, 4))
    settings = Settings(np.array([40, 17, 5]), np.array([0.05, 0.02, 0.1]), np.array([2.0, 1.0, 5.0]))
    blocks = iter([noise[:15], noise[15:]])
    found = descend(PROBLEMS[problem], np.full(4, 3.0), settings, RULES[method], blocks)
    for c in range(3):
        for s in range(2):
            steps = noise[: settings.steps[c], s][:, None]
            wanted = reference.vectors(
                problem, method, np.full(4, 3.0), steps, settings.rates[c], settings.thresholds[c], 1.5
            )
            assert found[c, s] == pytest.approx(wanted, rel=1e-12)


@pytest.mark.parametrize("problem", PROBLEMS)
def test_ps_clip_equals_its_twin(problem):
    """Two settings share the noise; a batch of 6 comes in parts of 4 and 2."""
    noise = random_generator(2, "noise").standard_t(1.5, (9, 3, 6, 4))  # T, S, n, d
    settings = Settings(np.array([9, 9]), np.array([0.1, 0.05]), np.array([0.5, 3.0]))
    parts = (part for batch in noise for part in (batch[:, :4], batch[:, 4:]))
    found = descend_per_sample(PROBLEMS[problem], np.full(4, 3.0), settings, 1.3, 6, parts)
    for c in range(2):
        for s in range(3):
            wanted = reference.vectors(
                problem, "ps_clip", np.full(4, 3.0), noise[:, s], settings.rates[c], settings.thresholds[c], 1.3
            )
            assert found[c, s] == pytest.approx(wanted, rel=1e-12)


def test_spectral_descent_equals_its_twin():
    draw = random_generator(3, "noise")
    noise = draw.standard_t(1.2, (60, 2, 16))
    start = 3.0 * np.sign(draw.standard_normal(16))
    settings = Settings(np.array([60]), np.array([0.1]), np.array([3.0]))
    found = descend(PROBLEMS["quad"], start, settings, clip_spectrum, iter([noise]))
    for s in range(2):
        wanted = reference.matrices("quad", start.reshape(4, 4), noise[:, s].reshape(60, 4, 4), 0.1, 3.0)
        assert found[0, s] == pytest.approx(wanted, rel=1e-12)


@pytest.mark.parametrize("strength", [0.0, 1.0, 3.0, 30.0, 1e6])
def test_clip_spectrum_is_exact_with_and_without_a_dominant_value(strength):
    draw = random_generator(4, "noise")
    rank_one = np.einsum("csi,csj->csij", *draw.standard_normal((2, 2, 50, 8))).reshape(2, 50, 64)
    gradients = draw.standard_normal((2, 50, 64)) + strength * rank_one
    thresholds = np.array([1.5, 9.0])
    found = gradients.copy()
    clip_spectrum(found, thresholds)
    for c in range(2):
        for s in range(50):
            before = gradients[c, s].reshape(8, 8)
            wanted = reference.spectral(before, thresholds[c])
            # An SVD of its own has an error of 1e-16 times the largest value.
            scale = max(1.0, 1e-3 * np.abs(before).max())
            assert np.abs(found[c, s].reshape(8, 8) - wanted).max() < 1e-12 * scale


def test_clip_spectrum_leaves_zero_and_non_finite_matrices():
    gradients = np.zeros((1, 3, 9))
    gradients[0, 1] = np.nan
    gradients[0, 2, 0] = np.inf
    before = gradients.copy()
    clip_spectrum(gradients, np.array([1.0]))
    assert np.array_equal(gradients, before, equal_nan=True)


def test_problems_have_the_stated_smoothness_and_a_bounded_valley():
    x = np.linspace(-20, 20, 400_001)
    for problem in PROBLEMS.values():
        steepest = np.abs(np.diff(problem.gradient(x)) / np.diff(x)).max()
        assert 0.98 * problem.smoothness < steepest <= problem.smoothness * (1 + 1e-6)
    assert np.abs(PROBLEMS["valley"].gradient(x)).max() < 1.75


def test_schedules_of_the_theory():
    power, total = 1.5, 2**15
    constants = Constants(0.25, 0.5, 4.0)
    ps = vector_schedule("ps_clip", constants, total, power, 7.0)
    assert ps.samples == round(0.25 * 2**9)  # K^{3/5}
    assert ps.steps == total // ps.samples
    assert (ps.rate, ps.threshold) == (0.5 / 7, 4.0)
    plain = vector_schedule("mini_batch", constants, total, power, 7.0)
    assert plain == (ps.samples, ps.steps, ps.rate, math.inf)
    assert vector_schedule("normalised", constants, total, power, 7.0).rate == 0.5 / math.sqrt(ps.steps)
    assert vector_schedule("sgd", constants, total, power, 7.0) == (1, total, 0.5 / math.sqrt(total), math.inf)
    clip = vector_schedule("norm_clip", constants, total, power, 7.0)
    assert clip[:2] == (1, total)
    assert clip.rate == pytest.approx(0.5 / 2**9 / 7)
    assert clip.threshold == pytest.approx(4.0 * 2**6)  # K^{2/5}
    for method in ("spectral_clip", "norm_clip"):
        assert matrix_schedule(method, constants, total, power)[2:] == pytest.approx((0.5 / 2**9, 4.0 * 2**6))
    assert matrix_schedule("sgd", constants, total, power).threshold == math.inf
    assert vector_schedule("ps_clip", Constants(1e-9, 1, 1), 64, power, 7.0)[:2] == (1, 64)
    assert vector_schedule("ps_clip", Constants(1e9, 1, 1), 64, power, 7.0)[:2] == (64, 1)


def test_mean_noise_is_distributed_as_the_mean_of_sample_noise():
    from scipy import stats

    many = np.concatenate(list(mean_noise(200, 8, 20, 4, 1.6, random_generator(5, "noise")))).reshape(-1, 4)
    means = np.stack([part.mean(axis=1) for part in sample_noise(200, 8, 20, 4, 1.6, random_generator(6, "noise"))])
    for axis in (0, 3):
        assert stats.ks_2samp(many[:, axis], means.reshape(-1, 4)[:, axis]).pvalue > 1e-3
    across = [table[..., 0] - table[..., 1] for table in (many, means)]
    assert across[0].std() == pytest.approx(math.sqrt(2 / 8 / 4), rel=0.1)
    assert across[1].std() == pytest.approx(math.sqrt(2 / 8 / 4), rel=0.1)


def test_constants_minimise_the_error_and_rows_hold_the_parts():
    made = finished(Rates(**SMALL))
    found = {(step, name): value for step, name, value in values(made)}
    for method in made.methods:
        scores = {c: score for name, c, score in made.scores if name == method}
        best = min(scores, key=scores.get)
        for which, value in best._asdict().items():
            assert found[128, f"constant/method={method}/which={which}"] == value
        for total in (32, 64, 128):
            parts = [found[total, f"gradient_norm/method={method}/part={i}"] for i in range(4)]
            assert found[total, f"gradient_norm/method={method}/quantile=mean"] == pytest.approx(np.mean(parts))
            steps, batch = found[total, f"steps/method={method}"], found[total, f"samples_per_step/method={method}"]
            assert total - batch < steps * batch <= total
    assert len(made.scores) == 8 + 4 + 2 + 2 + 4


def test_a_quantile_can_choose_the_constants():
    made = Rates(**{**SMALL, "select": 0.9, "exponents": [5]})
    norms = made.measure("sgd", 1, Settings(np.array([32]), np.array([0.1]), np.array([math.inf])), 50,
                         random_generator(0, "tuning", 0))  # fmt: skip
    made._measure = lambda *_: np.concatenate([norms, 2 * norms])
    made._tune("sgd", 1.0)
    assert made.scores[0][2] == np.quantile(norms, 0.9)
    assert made.best("sgd").rate == 0.3


def test_an_edge_of_the_grid_is_named_and_a_batch_of_one_sample_is_none():
    """Rates fall and thresholds rise without end; a batch of one sample is the smallest there is."""
    grid = {**GRID, "mini_batch": {"batch": [1e-9, 0.5], "rate": [0.25, 0.5]}, "sgd": {"rate": [0.003, 0.3, 30.0]}}
    made = Rates(**{**SMALL, "grid": grid})
    best = {"mini_batch": Constants(1e-9, 0.25, 1.0), "sgd": Constants(1.0, 0.3, 1.0)}

    def marks(method, constants):
        rows = made._constant_rows(method, 128, constants)
        return {tuple(row["metric"].split("/which=")) for row in rows if row["value"] == 1}

    for constants, edges, limits in [
        (best["mini_batch"], {"rate"}, {"batch"}),
        (best["mini_batch"]._replace(batch=0.5, rate=0.5), {"rate", "batch"}, set()),
    ]:
        found = marks("mini_batch", constants)
        assert {which for name, which in found if name.startswith("at_edge")} == edges
        assert {which for name, which in found if name.startswith("at_limit")} == limits
    assert not {name for name, _ in marks("sgd", best["sgd"]) if name.startswith("at_")}


def test_a_rate_that_diverges_is_never_chosen():
    grid = {**GRID, "sgd": {"rate": [1e6, 0.3]}}
    made = finished(Rates(**{**SMALL, "grid": grid}))
    assert made.best("sgd").rate == 0.3


@pytest.mark.parametrize(("kind", "setting"), [(Rates, SMALL), (RatesMatrix, MATRIX)])
def test_a_resumed_study_is_bit_for_bit_the_undisturbed_one(kind, setting):
    whole, first, second = finished(kind(**setting)), kind(**setting), kind(**setting)
    for _ in first.run():
        first.stopping = first.done == first.steps // 2
    second.load_state_dict(first.state_dict())
    assert values(finished(second)) == values(whole)
    assert second.status == "ok"


def test_measuring_matrices_equals_the_twin_seed_by_seed(monkeypatch):
    """Seeds run a few at a time, settings of other lengths side by side, on the noise of their own draw."""
    monkeypatch.setattr(rates_matrix, "MATRIX_NUMBERS_AT_ONCE", 40)
    for directions in ("fixed", "random"):
        made = RatesMatrix(**{**MATRIX, "directions": directions, "problem": "well"})
        settings = Settings(np.array([50, 20]), np.array([0.1, 0.3]), np.array([2.0, 1.0]))
        at_once = made.seeds_at_once(settings, 7)
        assert at_once == 3  # two parts of three and one of one
        found = made.measure("spectral_clip", 1, settings, 7, random_generator(8, "noise"))
        draw = random_generator(8, "noise")
        noise = [np.concatenate([block.copy() for block in made.noise(n, 50, draw)]) for n in (3, 3, 1)]
        noise = np.concatenate(noise, axis=1)
        for c, tau in enumerate(settings.thresholds):
            for s in range(7):
                steps = noise[: settings.steps[c], s].reshape(-1, 3, 3)
                start = made.start().reshape(3, 3)
                wanted = reference.matrices("well", start, steps, settings.rates[c], tau)
                assert found[c, s] == pytest.approx(wanted, rel=1e-12)


def test_matrix_noise_has_rank_one_and_fixed_or_random_directions():
    for directions, same in (("fixed", True), ("random", False)):
        made = RatesMatrix(**{**MATRIX, "directions": directions})
        blocks = [block.copy() for block in made.noise(4, 6, random_generator(0, "noise"))]
        block = np.concatenate(blocks).reshape(24, 3, 3)
        sigma = np.linalg.svd(block)[1]
        assert (sigma[:, 1] < 1e-12 * sigma[:, 0]).all()
        unit = block / np.linalg.norm(block, axis=(1, 2), keepdims=True)
        aligned = np.abs(np.einsum("kij,ij->k", unit, unit[0]))
        assert (aligned > 1 - 1e-12).all() == same
    start = made.start()
    assert set(np.abs(start)) == {3.0}
    assert np.array_equal(start, made.start())


@pytest.mark.parametrize(("option", "value"), [
    ("problem", "hill"), ("power", 2.0), ("margin", 0.0), ("dimension", 0), ("exponents", [6, 5]), ("exponents", []),
    ("seeds", 6), ("tuning_seeds", 0), ("groups", 1), ("select", "median"), ("select", 1.0), ("grid", {}),
    ("grid", {**GRID, "sgd": {"rate": [0.0]}}), ("grid", {**GRID, "sgd": {"lr": [1.0]}}),
])  # fmt: skip
def test_bad_input_names_the_option(option, value):
    with pytest.raises(ValueError, match=f"^{option} must be "):
        Rates(**{**SMALL, option: value})


@pytest.mark.parametrize(
    ("option", "value"), [("directions", "some"), ("side", 0), ("problem", "hill"), ("margin", 0.0)]
)
def test_bad_input_of_matrices_names_the_option(option, value):
    with pytest.raises(ValueError, match=f"^{option} must be "):
        RatesMatrix(**{**MATRIX, option: value})


def test_sine_is_sine():
    x = np.linspace(-9, 9, 1001)
    assert np.abs(descent._sine(x) - np.sin(x)).max() < 1e-15
