"""Every statistic against cases worked out by hand, or against a second way to compute it."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy import stats as scipy_stats

from clipbench.analysis import stats, survival
from clipbench.analysis.stats import Interval


def test_mean_interval_is_students_t():
    # mean 2, s = 1, n = 3; t_{2, 0.975} = 4.302653
    result = stats.mean_interval([1.0, 2.0, 3.0])
    half = 4.302653 / math.sqrt(3)
    assert result == pytest.approx((2.0, 2.0 - half, 2.0 + half, 3), rel=1e-6)


def test_mean_interval_of_none_and_of_one():
    assert stats.mean_interval([]).n == 0
    one = stats.mean_interval([4.0])
    assert one.estimate == 4.0
    assert math.isnan(one.low)
    assert one.n == 1


def test_mean_interval_bootstraps_from_twenty():
    values = np.random.default_rng(1).exponential(size=20)
    result = stats.mean_interval(values)
    expected = scipy_stats.bootstrap((values,), np.mean, n_resamples=9999, rng=np.random.default_rng(0))
    assert (result.low, result.high) == tuple(expected.confidence_interval)
    half_of_them = scipy_stats.bootstrap(
        (values,), np.mean, n_resamples=9999, confidence_level=0.5, rng=np.random.default_rng(0)
    )
    assert stats.mean_interval(values, 0.5)[1:3] == tuple(half_of_them.confidence_interval)
    half = scipy_stats.t.ppf(0.975, 19) * values.std(ddof=1) / math.sqrt(20)
    assert result.high - result.estimate != pytest.approx(half, rel=1e-3)
    assert stats.mean_interval(values) == result, "resampling must be fixed by the seed"
    assert stats.mean_interval([3.0] * 20) == (3.0, 3.0, 3.0, 20)


def test_t_interval_covers_what_it_promises():
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(2000):
        interval = stats.mean_interval(rng.normal(5.0, 2.0, size=3))
        covered += interval.low <= 5.0 <= interval.high
    assert 0.935 < covered / 2000 < 0.965


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_intervals_refuse_what_is_not_finite(bad):
    for function in (stats.mean_interval, stats.interquartile_mean):
        with pytest.raises(ValueError, match=r"^values must be"):
            function([1.0, bad, 2.0])


def test_level_is_checked():
    with pytest.raises(ValueError, match=r"^level must be in \(0, 1\), got 95"):
        stats.mean_interval([1.0, 2.0], level=95)


def test_paired_difference_uses_common_seeds_only():
    # d = 1, 2, 3 on seeds 0, 1, 2; seed 9 has no partner
    values, base = {0: 11.0, 1: 22.0, 2: 33.0, 9: 1.0}, {0: 10.0, 1: 20.0, 2: 30.0, 5: 7.0}
    assert stats.paired_difference(values, base) == stats.mean_interval([1.0, 2.0, 3.0])
    assert stats.paired_difference({0: 1.0}, {1: 1.0}).n == 0


def test_paired_difference_of_many_is_the_bootstrap_of_the_same_seed():
    differences = np.random.default_rng(4).exponential(size=25)
    values, base = dict(enumerate(differences)), dict.fromkeys(range(25), 0.0)
    assert stats.paired_difference(values, base) == stats.mean_interval(differences)
    assert stats.paired_difference(values, base, seed=5) == stats.mean_interval(differences, seed=5)
    assert stats.paired_difference(values, base, seed=5) != stats.paired_difference(values, base)


def test_pairing_removes_the_seeds_own_luck():
    luck = np.random.default_rng(0).normal(0, 10, size=8)
    small = np.random.default_rng(1).normal(0.5, 0.1, size=8)
    base = dict(enumerate(luck))
    values = {seed: luck[seed] + small[seed] for seed in base}
    assert stats.paired_difference(values, base).low > 0.3
    assert stats.mean_interval(list(values.values())).low < stats.mean_interval(luck).estimate


def test_interquartile_mean_by_hand():
    # 1 2 | 3 4 5 6 | 7 100: IQM 4.5. Winsorised 3 3 3 4 5 6 6 6: mean 4.5, sum of squares 2·(2.25·3 + .25) =
    # 14, s_w = √(14/7) = √2; half width t_{3} · √2 · √8 / 4 = t_3 = 3.182446
    result = stats.interquartile_mean([100.0, 1, 2, 3, 4, 5, 6, 7])
    assert result == pytest.approx((4.5, 4.5 - 3.182446, 4.5 + 3.182446, 8), rel=1e-6)


def test_interquartile_mean_of_three_is_the_mean():
    assert stats.interquartile_mean([1.0, 2.0, 6.0]) == pytest.approx(stats.mean_interval([1.0, 2.0, 6.0]))


def test_interquartile_mean_of_many_matches_scipy_and_ignores_outliers():
    values = np.random.default_rng(0).normal(size=40)
    spoiled = values.copy()
    spoiled[:5] = 1e9
    result = stats.interquartile_mean(values)
    assert result.estimate == pytest.approx(scipy_stats.trim_mean(values, 0.25))
    assert result.low < result.estimate < result.high
    assert abs(stats.interquartile_mean(spoiled).estimate) < 1


def test_interquartile_mean_bootstraps_from_twenty():
    values = np.random.default_rng(2).exponential(size=20)

    def middle(sample, axis=-1):
        return scipy_stats.trim_mean(sample, 0.25, axis=axis)

    for level in (0.95, 0.5):
        expected = scipy_stats.bootstrap(
            (np.sort(values),), middle, n_resamples=9999, confidence_level=level, rng=np.random.default_rng(3)
        )
        assert stats.interquartile_mean(values, level, seed=3)[1:3] == tuple(expected.confidence_interval)


def test_interquartile_mean_of_none_and_of_one():
    assert stats.interquartile_mean([]) == pytest.approx((math.nan, math.nan, math.nan, 0), nan_ok=True)
    assert stats.interquartile_mean([4.0]) == pytest.approx((4.0, math.nan, math.nan, 1), nan_ok=True)


def test_probability_of_improvement_by_hand():
    # pairs (x, y): 2>1, 2=2 (½), 2<3, 4>1, 4>2, 4>3: 4.5 of 6
    assert stats.probability_of_improvement([2.0, 4.0], [1.0, 2.0, 3.0]).estimate == 0.75
    assert stats.probability_of_improvement([2.0, 4.0], [1.0, 2.0, 3.0], False).estimate == 0.25


def test_probability_of_improvement_counts_diverged_runs_as_worst():
    result = stats.probability_of_improvement([0.5, math.inf], [0.6, 0.7], higher_is_better=False)
    assert result.estimate == 0.5


def test_probability_of_improvement_interval():
    x, y = [5.0, 6.0, 7.0, 3.0], [1.0, 4.0, 2.0]
    result = stats.probability_of_improvement(x, y)
    z, theta, n, m = 1.959964, result.estimate, 4, 3
    for bound in (result.low, result.high):  # each bound solves its equation
        shape = (1 - bound) / (2 - bound) + bound / (1 + bound)
        variance = bound * (1 - bound) / (n * m) * (1 + ((n + m) / 2 - 1) * shape)
        assert abs(theta - bound) == pytest.approx(z * math.sqrt(variance), rel=1e-5)
    certain = stats.probability_of_improvement([5.0, 6.0], [1.0, 2.0])
    assert (certain.estimate, certain.high) == (1.0, 1.0)
    assert 0.2 < certain.low < 0.7, "two runs each cannot be certain"
    mirrored = stats.probability_of_improvement([1.0, 2.0], [5.0, 6.0])
    assert mirrored.high == pytest.approx(1 - certain.low)
    assert (mirrored.estimate, mirrored.low, mirrored.n) == (0.0, 0.0, 4)
    assert result.n == 7


@pytest.mark.parametrize(("x", "y"), [([], []), ([1.0, 2.0], []), ([], [1.0])])
def test_probability_of_improvement_without_runs_on_a_side(x, y):
    nothing = (math.nan, math.nan, math.nan, len(x) + len(y))
    assert stats.probability_of_improvement(x, y) == pytest.approx(nothing, nan_ok=True)


def test_probability_of_improvement_covers_what_it_promises():
    rng, covered = np.random.default_rng(0), 0
    truth = scipy_stats.norm.cdf(1 / math.sqrt(2))
    for _ in range(500):
        interval = stats.probability_of_improvement(rng.normal(1, 1, 10), rng.normal(0, 1, 10))
        covered += interval.low <= truth <= interval.high
    assert covered / 500 > 0.92


def test_first_crossing_is_the_first_evaluation_that_meets_the_target():
    steps, loss = [10, 20, 30, 40], [3.0, math.nan, 1.0, 2.0]
    assert stats.first_crossing(steps, loss, 2.0) == 30
    assert stats.first_crossing(steps, loss, 1.0) == 30
    assert stats.first_crossing(steps, loss, 0.5) is None
    assert stats.first_crossing(steps, [0.1, 0.2, 0.3, 0.2], 0.25, higher_is_better=True) == 30


def test_censored_times_by_hand():
    # 2, 4, 4+, 5, 8+ of 5: S = 4/5 after 2, 3/5 after 4, 3/5 · 1/2 = 3/10 after 5
    result = stats.censored_times([2, 4, 4, 5, 8], [True, True, False, True, False], horizon=10)
    assert result.median == 5
    # ∫ S = 2·1 + 2·0.8 + 1·0.6 + 5·0.3
    assert result.restricted_mean == pytest.approx(5.7)
    assert (result.n, result.reached, result.high) == (5, 3, math.inf)


def test_a_survival_of_one_half_is_one_whatever_the_last_bit():
    # S = 9/10 · 7/9 · 5/7, in floating point a little above one half
    times = [1.0, 2.0, 2.0, 3.0, 3.0, 9.0, 9.0, 9.0, 9.0, 9.0]
    assert 9 / 10 * (7 / 9) * (5 / 7) > 0.5
    assert stats.censored_times(times, [True] * 10, horizon=10).median == 3


@pytest.mark.parametrize("level", [0.95, 0.6])
def test_the_bounds_of_the_median_are_where_the_log_log_band_crosses_one_half(level):
    """S_±(t) = S^exp(±z √v / log S), v = Σ d/(n (n − d)) (Greenwood), for ten times without censoring."""
    times, z = np.arange(1.0, 11.0), scipy_stats.norm.ppf((1 + level) / 2)
    left = (10 - times[:-1]) / 10
    spread = np.sqrt(np.cumsum([1 / (n * (n - 1)) for n in range(10, 1, -1)])) / np.abs(np.log(left))
    low, high = (times[:-1][left ** np.exp(sign * z * spread) <= 0.5] for sign in (1, -1))
    result = stats.censored_times(times, [True] * 10, horizon=10, level=level)
    assert (result.median, result.low) == (5.0, low[0])
    assert result.high == (high[0] if len(high) else 10.0)
    curves = [([t], [0.0]) for t in times]
    assert stats.steps_to_target(curves, target=0.5, horizon=10, level=level) == result
    assert stats.time_to_target(curves, target=0.5, horizon=10, level=level) == result


def test_censored_times_without_censoring_are_plain():
    times = [3.0, 1.0, 5.0, 4.0, 2.0]
    result = stats.censored_times(times, [True] * 5, horizon=10)
    assert result.median == 3
    assert result.restricted_mean == pytest.approx(3.0)
    assert result.low <= 3 <= result.high


def test_censored_times_when_few_or_none_get_there():
    few = stats.censored_times([5, 10, 10], [True, False, False], horizon=10)
    assert few.median == math.inf
    # S = 1 up to 5 and 2/3 from there on
    assert few.restricted_mean == pytest.approx(5 + 5 * 2 / 3)
    none = stats.censored_times([10, 10], [False, False], horizon=10)
    assert (none.median, none.restricted_mean, none.reached) == (math.inf, 10, 0)
    assert stats.censored_times([], [], horizon=10).n == 0


def test_censored_times_check_their_input():
    with pytest.raises(ValueError, match=r"^reached must have one entry per time"):
        stats.censored_times([1.0], [True, False], 10)
    with pytest.raises(ValueError, match=r"^times must lie in"):
        stats.censored_times([11.0], [True], 10)


def test_steps_to_target_censors_at_the_end_of_a_full_run():
    good = ([100, 200, 300], [3.0, 2.0, 1.0])
    diverged = ([100], [3.0])  # broke off at 100 of 300 steps: it never gets there
    result = stats.steps_to_target([good, good, diverged], target=2.0, horizon=300)
    assert (result.median, result.n, result.reached) == (200, 3, 2)
    assert result.restricted_mean == pytest.approx((200 + 200 + 300) / 3)


def test_censoring_matters():
    """Dropping the runs that never arrive would make the worse method look as good as the better one."""
    runs = [([1, 2], [5.0, 1.0])] * 2 + [([1, 2], [5.0, 5.0])] * 3
    result = stats.time_to_target(runs, target=1.0, horizon=2.0)
    assert result.median == math.inf
    dropped = survival.censored_times([2.0, 2.0], [True, True], 2.0)
    assert dropped.median == 2.0


def test_a_time_after_the_horizon_is_not_reached():
    result = stats.time_to_target([([5.0, 15.0], [2.0, 0.5])], target=1.0, horizon=10.0)
    assert result.reached == 0
    on_time = stats.time_to_target([([5.0, 10.0], [2.0, 0.5])], target=1.0, horizon=10.0)
    assert (on_time.reached, on_time.median) == (1, 10.0)


def test_times_where_higher_is_better():
    rising = [([1, 2, 3], [0.1, 0.6, 0.9]), ([1, 2, 3], [0.2, 0.3, 0.5])]
    for function in (stats.time_to_target, stats.steps_to_target):
        result = function(rising, 0.5, 3, True)
        assert (result.reached, result.restricted_mean) == (2, 2.5)
        assert function(rising, 0.5, 3).restricted_mean == 1.0  # as losses, all are low enough at once


def test_performance_profile_by_hand():
    costs = {"a": {"p": 1.0, "q": 4.0, "r": math.inf}, "b": {"p": 2.0, "q": math.inf, "r": math.inf}}
    profile = stats.performance_profile(costs, [1.0, 2.0, 100.0])
    np.testing.assert_allclose(profile["a"], [2 / 3, 2 / 3, 2 / 3])
    np.testing.assert_allclose(profile["b"], [0.0, 1 / 3, 1 / 3])


def test_performance_profile_properties():
    rng = np.random.default_rng(0)
    costs = {m: {str(p): float(v) for p, v in enumerate(rng.exponential(size=9))} for m in "abc"}
    profile = stats.performance_profile(costs, np.geomspace(1, 1e6, 50))
    assert sum(curve[0] for curve in profile.values()) == pytest.approx(1.0), "no ties: one winner a problem"
    for curve in profile.values():
        assert (np.diff(curve) >= 0).all()
        assert curve[-1] == 1.0


def test_performance_profile_of_no_methods():
    assert stats.performance_profile({}, [1.0]) == {}


@pytest.mark.parametrize("costs", [{"a": {"p": 1.0}, "b": {"q": 1.0}}, {"a": {"p": 0.0}}, {"a": {"p": math.nan}}])
def test_performance_profile_checks_its_input(costs):
    with pytest.raises(ValueError, match=r"^costs must"):
        stats.performance_profile(costs, [1.0])


VERDICTS = [
    (Interval(0.1, 0.05, 0.15, 4), True, 0, 0, "no verdict"),
    (Interval(0.1, 0.05, 0.15, 5), True, 0, 0, "better"),
    (Interval(0.1, 0.05, 0.15, 5), False, 0, 0, "worse"),
    (Interval(-0.1, -0.15, -0.05, 5), False, 0, 0, "better"),
    (Interval(0.1, -0.05, 0.15, 5), True, 0, 0, "no difference shown"),
    (Interval(0.1, 0.05, 0.15, 5), True, 1, 0, "no verdict"),
    (Interval(0.1, 0.05, 0.15, 5), True, 1, 1, "better"),
    (Interval(-0.1, -0.15, -0.05, 5), True, 0, 1, "no verdict"),
    (Interval(-0.1, -0.15, -0.05, 5), True, 1, 1, "worse"),
    (Interval(0.1, 0.0, 0.2, 5), True, 0, 0, "no difference shown"),
    (Interval(-0.1, -0.2, 0.0, 5), True, 0, 0, "no difference shown"),
]


@pytest.mark.parametrize(("interval", "higher", "diverged", "base", "expected"), VERDICTS)
def test_verdict(interval, higher, diverged, base, expected):
    word, why = stats.verdict(interval, higher, diverged, base)
    assert word == expected
    assert bool(why) == (word == "no verdict")


def test_without_counts_no_run_diverged():
    interval = Interval(0.1, 0.05, 0.15, 5)
    assert stats.verdict(interval, True) == ("better", "")
    assert stats.verdict(interval, True, diverged=1) == ("no verdict", "diverged more often")
    assert stats.verdict(interval, False, base_diverged=1) == ("no verdict", "baseline diverged more often")


def test_brute_force_expected_best():
    from clipbench.analysis.sensitivity import expected_best

    losses = [3.0, 1.0, 2.0]
    draws = [min(draw) for draw in itertools.product(losses, repeat=2)]
    assert expected_best(losses, 2) == pytest.approx(np.mean(draws))
    assert expected_best([1.0, math.inf], 3) == math.inf
    with pytest.raises(ValueError, match=r"^trials must be"):
        expected_best(losses, 0)
