"""Claims that rest on studies, on synthetic records whose slopes and quantiles are known."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from clipbench.analysis.claims import decide, estimators, rates, spectra
from clipbench.analysis.claims.source import Missing, Source
from clipbench.analysis.collect import collect
from clipbench.analysis.study_rows import jackknife, log_slope, pick, study_table
from clipbench.studies import heavy_tails
from tests.analysis.synthetic import write_run

GROUPS = 10
TOTALS = [2**e for e in range(8, 18)]


def put(root: Path, study: dict[str, Any], rows: list[tuple[int, str, float]], experiment: str) -> None:
    """One finished study with these (step, metric, value)."""
    folder = write_run(root, "study", experiment=experiment, config={"study": study}, accuracy=False)
    table = pd.DataFrame(rows, columns=["step", "metric", "value"])
    table = table.assign(epoch=0.0, samples=table["step"], train_seconds=1.0, split="study")
    table[["step", "epoch", "samples", "train_seconds", "split", "metric", "value"]].to_parquet(
        folder / "metrics.parquet"
    )


def test_jackknife_of_a_mean_is_its_t_interval() -> None:
    values = np.random.default_rng(0).normal(size=12)
    found = jackknife(values.mean(), [np.delete(values, i).mean() for i in range(12)])
    half = 2.200985 * values.std(ddof=1) / math.sqrt(12)  # t of 11 degrees of freedom
    assert found[1:3] == pytest.approx((values.mean() - half, values.mean() + half), rel=1e-5)
    assert math.isnan(jackknife(1.0, [1.0]).low)


def test_names_of_metrics_are_taken_apart(tmp_path: Path) -> None:
    rows = [
        (4, "error/estimator=mean/quantile=0.5", 1.0),
        (2, "error/estimator=mean/quantile=0.5", 2.0),
        (4, "scale", 3.0),
    ]
    put(tmp_path, {"noise": "x"}, rows, "study/cpu")
    collect(tmp_path)
    runs = Source(tmp_path).experiment("study/cpu")
    table = study_table(runs, runs.runs["run_id"][0])
    assert pick(table, "error", estimator="mean", quantile=0.5).to_dict() == {2: 2.0, 4: 1.0}
    assert pick(table, "scale").to_dict() == {4: 3.0}
    assert pick(table, "error", unknown=1).empty
    assert log_slope(pick(table, "error", estimator="mean", quantile=0.5)) == pytest.approx(-1.0)


def rate_rows(curve: Callable[[int], float], noise: float, seed: int) -> list[tuple[int, str, float]]:
    rng = np.random.default_rng(seed)
    rows = []
    for total in TOTALS:
        parts = curve(total) * np.exp(noise * rng.standard_normal(GROUPS))
        rows += [(total, f"gradient_norm/method=ps_clip/part={i}", value) for i, value in enumerate(parts)]
        rows += [
            (total, "gradient_norm/method=ps_clip/quantile=mean", parts.mean()),
            (total, "steps/method=ps_clip", total),
        ]
    return rows


def judge_rates(root: Path, slopes: dict[tuple[str, float], float], bent: tuple[tuple[str, float], ...] = ()) -> Any:
    for i, ((problem, power), slope) in enumerate(slopes.items()):
        late = slope - 0.1 if (problem, power) in bent else slope
        middle = TOTALS[6] ** (slope - late)
        curve = lambda k, s=slope, t=late, m=middle: k**s if k <= TOTALS[6] else m * k**t  # noqa: E731
        put(root, {"problem": problem, "power": power}, rate_rows(curve, 0.01, i), "rates/cpu")
    collect(root)
    return rates.rate_in_expectation(
        Source(root), "rates/cpu", "ps_clip", slack=0.02, settled=0.03, enough=4, among=1.5, slope_from=2048,
        slope_steps=16, beside=[],
    )  # fmt: skip


def best(power: float) -> float:
    return -(power - 1) / (3 * power - 2)


CELLS = [(problem, power) for problem in ("valley", "quad") for power in (1.2, 1.5, 1.8)]


def test_the_optimal_rate_is_reproduced(tmp_path: Path) -> None:
    statements = judge_rates(tmp_path, {cell: best(cell[1]) for cell in CELLS})
    assert decide(statements).verdict == "reproduced"
    assert statements[0].effect.n == GROUPS


def test_a_slower_rate_in_one_cell_is_not(tmp_path: Path) -> None:
    slopes = {cell: best(cell[1]) for cell in CELLS}
    slopes["quad", 1.8] += 0.06
    decision = decide(judge_rates(tmp_path, slopes))
    assert decision.verdict == "not reproduced"
    assert "quad, p = 1.8" in decision.reason


def test_slopes_that_have_not_settled_decide_nothing(tmp_path: Path) -> None:
    slopes = {cell: best(cell[1]) for cell in CELLS}
    statements = judge_rates(tmp_path / "a", slopes, bent=(("quad", 1.2),))
    assert [s.required for s in statements].count(False) == 1
    assert decide(statements).verdict == "reproduced"
    with pytest.raises(Missing, match=r"3 of 6 cells have settled slopes"):
        judge_rates(tmp_path / "b", slopes, bent=tuple(CELLS[:1] + CELLS[3:5]))
    with pytest.raises(Missing, match=r"not settled: valley, p = 1.5") as raised:
        judge_rates(tmp_path / "c", slopes, bent=(("valley", 1.5),))
    assert len(raised.value.statements) == 6


def high_rows(spreads: dict[str, float], seed: int) -> list[tuple[int, str, float]]:
    rng = np.random.default_rng(seed)
    rows = []
    for method, spread in spreads.items():
        rows += [(4096, f"gradient_norm/method={method}/quantile={q}", v) for q, v in (("0.5", 1.0), ("0.999", spread))]
        for i in range(GROUPS):
            for level, value in (("0.5", 1.0), ("0.999", spread)):
                name = f"gradient_norm_without/method={method}/quantile={level}/part={i}"
                rows.append((4096, name, value * math.exp(0.002 * rng.standard_normal())))
    return rows


@pytest.mark.parametrize(
    ("own", "other", "verdict"),
    [(2.0, 8.0, "reproduced"), (2.0, 3.0, "not reproduced"), (20.0, 80.0, "not reproduced")],
    ids=["as claimed", "the plain mean is as good", "grows faster than the logarithm"],
)
def test_high_probability(tmp_path: Path, own: float, other: float, verdict: str) -> None:
    for power in (1.2, 1.5, 1.8):
        rows = high_rows({"ps_clip": own, "mini_batch": other}, int(10 * power))
        put(tmp_path, {"problem": "quad", "power": power}, rows, "rates/tails")
    collect(tmp_path)
    statements = rates.rate_with_high_probability(
        Source(tmp_path), "rates/tails", "ps_clip", "mini_batch", "quad", [1.2, 1.5], 0.5
    )
    assert [s.required for s in statements].count(True) == 4
    assert decide(statements).verdict == verdict
    assert statements[0].effect.estimate == pytest.approx(math.log(own) / math.log(math.log(1000) / math.log(2)))


def error_rows(slopes: dict[str, float], factors: dict[str, float], seed: int) -> list[tuple[int, str, float]]:
    rng = np.random.default_rng(seed)
    rows = []
    for name, slope in slopes.items():
        for size in [2**e for e in range(1, 13)]:
            for level, factor in (("0.5", 1.0), ("0.999", factors[name])):
                value = factor * size**slope
                rows.append((size, f"error/estimator={name}/quantile={level}", value))
                for i in range(GROUPS):
                    noisy = value * math.exp(0.002 * rng.standard_normal())
                    rows.append((size, f"error_without/estimator={name}/quantile={level}/part={i}", noisy))
    return rows


@pytest.mark.parametrize(
    ("slope", "factor", "verdict"),
    [(-0.3, 3.0, "reproduced"), (-0.1, 3.0, "not reproduced"), (-0.3, 9.0, "not reproduced")],
    ids=["as claimed", "too slow", "no better than the mean"],
)
def test_robust_estimator(tmp_path: Path, slope: float, factor: float, verdict: str) -> None:
    names = {"ps_clip": slope, "mean": -0.3, "batch_clip": -0.3}
    factors = {"ps_clip": factor, "mean": 6.0, "batch_clip": 6.0}
    for i, noise in enumerate(heavy_tails.SAMPLERS):
        study = {"noise": noise, "index": 1.5, "margin": 0.05, "mean_norm": 1.0, "dimension": 10}
        put(tmp_path, study, error_rows(names, factors, i), "estimator_error/cpu")
    collect(tmp_path)
    statements = estimators.robust_estimator(
        Source(tmp_path), "estimator_error/cpu", "ps_clip", ["mean", "batch_clip"], 0.05, 64, 1024
    )
    places = [s.text for s in statements if s.text.startswith("0.999-quantile at")]
    assert len(statements) == 2 * len(heavy_tails.SAMPLERS) + 4  # two slopes in each cell, two comparisons if skewed
    assert [sum(name in text for text in places) for name in ("pareto", "alpha_stable", "student_t")] == [2, 2, 0]
    assert decide(statements).verdict == verdict


def spectrum_rows(top: dict[str, float], bulk: float, seed: int) -> list[tuple[int, str, float]]:
    rng = np.random.default_rng(seed)
    rows = []
    for step in (100, 1000):
        for layer in ("a", "b", "c"):
            for kind, height in ({"control": 0.0} | top).items():
                for part in range(GROUPS):
                    name = f"kind={kind}/count=4/layer={layer}/part={part}"
                    low = (0.0 if kind == "control" else bulk) + 0.01 * rng.standard_normal()
                    rows += [
                        (step, f"top/{name}", low + height + 0.05 * rng.standard_normal()),
                        (step, f"bulk/{name}", low),
                    ]
    return rows


@pytest.mark.parametrize(
    ("height", "bulk", "verdict"),
    [(1.0, 0.0, "reproduced"), (0.1, 0.0, "not reproduced"), (1.0, 0.3, "not reproduced"), (0.41, 0.0, "not decided")],
    ids=["as claimed", "the top stays", "the bulk moves too", "at the bound"],
)
def test_outliers_and_spectra(tmp_path: Path, height: float, bulk: float, verdict: str) -> None:
    for i, network in enumerate(("alexnet", "transformer")):
        rows = spectrum_rows({"targets": height, "loss": height}, bulk, i)
        folder = write_run(tmp_path, "study", experiment=f"spectrum/{network}", config={"model": {"name": network}})
        table = pd.DataFrame(rows, columns=["step", "metric", "value"])
        table = table.assign(epoch=0.0, samples=0, train_seconds=1.0, split="study")
        columns = ["step", "epoch", "samples", "train_seconds", "split", "metric", "value"]
        table[columns].to_parquet(folder / "metrics.parquet")
    collect(tmp_path)
    names = ["spectrum/alexnet", "spectrum/transformer"]
    statements = spectra.outliers_move_few_values(Source(tmp_path), names, 4, 1.5, 0.1)
    assert len(statements) == 4
    assert statements[0].effect.n == 6
    assert decide(statements).verdict == verdict
