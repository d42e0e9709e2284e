"""Errors of clipped means against whole vectors, exactly and in distribution; the medians against their twins."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from clipbench.studies import heavy_tails
from clipbench.studies.base import random_generator, read_metric
from clipbench.studies.clipped_sums import Draws, Noise, weighted_means
from clipbench.studies.estimator_error import CLIPPED, EstimatorError
from clipbench.studies.medians import coordinate_median, geometric_median, group_means
from clipbench.studies.summary import carried, left_out, slope
from tests.reference import estimators_of_a_mean as reference

SMALL = {
    "seed": 0, "noise": "pareto", "index": 1.5, "margin": 0.05, "mean_norm": 2.0, "angle": 30.0, "dimension": 10,
    "log_size": 6, "repetitions": 400, "median_repetitions": 20, "tuning_repetitions": 50, "groups": 4,
    "grid": [0.5, 2.0, 8.0], "select_size": 32, "select_level": 0.9, "slope_from": 8, "mean_groups": 8,
}  # fmt: skip


def study(**changes) -> EstimatorError:
    return EstimatorError(**{**SMALL, **changes})


def vectors(made: EstimatorError, n: int, draw: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """n samples in R^d, u the first axis, and their mean."""
    d = made.noise.dimension
    mean = np.array([*made.mean, *[0.0] * (d - 2)])
    samples = draw.standard_normal((n, d)) / math.sqrt(d) + mean
    samples[:, 0] += heavy_tails.SAMPLERS[made.noise.kind]((n,), made.noise.tail_index, draw)
    return samples, mean


def twin(made: EstimatorError, name: str, value: float, samples: np.ndarray) -> np.ndarray:
    if name == "batch_clip":
        return reference.batch_clip(samples, value)
    n = len(samples)
    if name.startswith("ps_clip"):
        return reference.clipped_mean(samples, [value * (k + 1) ** (1 / made.power) for k in range(n)])
    return reference.clipped_mean(samples, [value] * n)


@pytest.mark.parametrize(("name", "value"), [
    ("mean", math.inf), ("ps_clip", 0.7), ("ps_clip_theory", 3.0), ("constant_clip", 2.0), ("batch_clip", 1.0),
])  # fmt: skip
def test_five_numbers_a_sample_give_the_twins_error_exactly(name, value):
    """Real vectors, written in the frame that follows the estimator's own sum, give the same error."""
    made = study()
    samples, mean = vectors(made, 64, random_generator(5, "noise"))
    thresholds = np.full(64, math.inf)
    if name.startswith("ps_clip"):
        thresholds = value * np.arange(1.0, 65) ** (1 / made.power)
    elif name == "constant_clip":
        thresholds = np.full(64, value)
    axial, rest, total = np.empty(64), np.empty(64), np.zeros(8)
    for k, g in enumerate(samples):
        direction = total / np.linalg.norm(total) if k else np.eye(8)[0]
        axial[k] = g[2:] @ direction
        rest[k] = ((g[2:] - axial[k] * direction) ** 2).sum()
        total += g[2:] * min(1.0, thresholds[k] / np.linalg.norm(g))
    draws = Draws(*(x[:, None] for x in (samples[:, 0] - mean[0], samples[:, 1] - mean[1], axial, rest)))
    found = made.errors(draws, [(name, value)], made.sizes)[0, :, 0]
    wanted = [np.linalg.norm(twin(made, name, value, samples[:n]) - mean) for n in made.sizes]
    assert np.abs(found - wanted).max() < 1e-12 * max(wanted)


@pytest.mark.parametrize("noise", ["pareto", "alpha_stable", "student_t"])
def test_errors_are_distributed_as_those_of_whole_vectors(noise):
    made, draw = study(noise=noise), random_generator(6, "noise")
    settings = [("mean", math.inf), ("ps_clip", 0.7), ("constant_clip", 2.0), ("batch_clip", 1.0)]
    found = made.errors(made.noise.draw(16, 4000, draw), settings, np.array([16]))[:, 0]
    wanted = np.empty((4, 1500))
    for r in range(1500):
        samples, mean = vectors(made, 16, draw)
        wanted[:, r] = [np.linalg.norm(twin(made, name, value, samples) - mean) for name, value in settings]
    for i in range(4):
        assert stats.ks_2samp(found[i], wanted[i]).pvalue > 1e-3, settings[i]


def test_in_the_limit_of_large_thresholds_ps_clip_is_the_mean_and_small_ones_shrink_to_zero():
    made = study()
    draws = made.noise.draw(64, 50, random_generator(7, "noise"))
    mean, large, small = made.errors(draws, [("mean", 0.0), ("ps_clip", 1e9), ("ps_clip", 1e-9)], made.sizes)
    assert np.abs(mean - large).max() < 1e-12
    assert np.abs(small - 2.0).max() < 1e-6


def test_a_prefix_of_the_largest_batch_is_a_batch():
    made = study()
    draws = made.noise.draw(64, 20, random_generator(8, "noise"))
    short = Draws(*(x[:16] for x in draws))
    weights = random_generator(9, "noise").random((64, 20))
    whole = weighted_means(draws, made.mean, weights, np.array([4, 16, 64]))
    part = weighted_means(short, made.mean, weights[:16], np.array([16]))
    for a, b in zip(whole, part, strict=True):
        assert np.abs(a[1] - b[0]).max() < 1e-13


def test_lengths_are_those_of_the_dimension():
    for dimension in (4, 10, 1000):
        draws = Noise("pareto", 1.5, 1 / math.sqrt(dimension), dimension).draw(50, 400, random_generator(1, "noise"))
        total = (draws.across**2 + draws.axial**2 + draws.rest).mean()
        assert total == pytest.approx((dimension - 1) / dimension, rel=0.05)


def test_medians_equal_their_twins():
    draw = random_generator(10, "noise")
    for n in (2, 4, 64):
        samples = draw.standard_t(1.5, (3, 5, n))
        for r in range(3):
            assert np.abs(coordinate_median(samples[r]) - reference.coordinate_median(samples[r].T)).max() < 1e-14
    points = group_means(samples, 8)
    assert np.abs(points[1, :, 2] - samples[1, :, 16:24].mean(axis=1)).max() < 1e-14
    found = geometric_median(points)
    for r in range(3):
        wanted = reference.geometric_median(points[r].T)
        loss = [sum(np.linalg.norm(x - y) for y in points[r].T) for x in (found[r], wanted)]
        assert loss[0] <= loss[1] * (1 + 1e-9)
        assert np.abs(found[r] - wanted).max() < 1e-4


def test_rows_hold_quantiles_jackknife_and_choice():
    made = study()
    for _ in made.run():
        pass
    found = {(row["step"], row["metric"]): row["value"] for row in made.rows}
    assert found[64, "error/estimator=mean/quantile=0.5"] == np.median(made.clipped[0, -1])
    table = made.clipped[CLIPPED.index("ps_clip"), -1]
    assert found[64, "error_without/estimator=ps_clip/quantile=0.5/part=1"] == np.median(
        np.delete(table, range(100, 200))
    )
    assert found[64, "error/estimator=ps_clip/quantile=mean"] == table.mean()
    for name in ("ps_clip", "constant_clip", "batch_clip"):
        scores = {v: found[32, f"grid_error/estimator={name}/threshold={v}"] for v in SMALL["grid"]}
        assert found[32, f"chosen/estimator={name}"] == min(scores, key=scores.get)
    shown = {read_metric(row["metric"])[1].get("estimator") for row in made.rows}
    assert shown - {None} == {*CLIPPED, "coordinate_median", "geometric_median_of_means"}
    assert not any("0.999" in row["metric"] for row in made.rows)  # 400 repetitions do not carry it


def test_a_resumed_study_is_bit_for_bit_the_undisturbed_one():
    whole, first, second = study(), study(), study()
    for _ in whole.run():
        pass
    for _ in first.run():
        first.stopping = first.done == 2
    second.load_state_dict(first.state_dict())
    for _ in second.run():
        pass
    assert [(r["step"], r["metric"], r["value"]) for r in second.rows] == [
        (r["step"], r["metric"], r["value"]) for r in whole.rows
    ]


def test_summary():
    assert carried((0.5, 0.9, 0.999), 100) == [0.5, 0.9]
    assert 0.999 in carried((0.5, 0.999), 10_000)
    assert [part.tolist() for part in left_out(np.arange(6.0), 3)] == [[2, 3, 4, 5], [0, 1, 4, 5], [0, 1, 2, 3]]
    n = np.array([64.0, 128.0, 256.0])
    assert slope(n, 3 * n**-0.4) == pytest.approx(-0.4)
    assert math.isnan(slope(n[:1], n[:1]))


@pytest.mark.parametrize(("option", "value"), [
    ("noise", "cauchy"), ("index", 2.5), ("margin", 0.6), ("mean_norm", 0.0), ("dimension", 3), ("log_size", 0),
    ("groups", 1), ("repetitions", 6), ("median_repetitions", 2), ("tuning_repetitions", 0), ("grid", [0.0]),
    ("select_size", 48), ("select_level", 1.0),
])  # fmt: skip
def test_bad_input_names_the_option(option, value):
    with pytest.raises(ValueError, match=f"^{option} must be "):
        study(**{option: value})
