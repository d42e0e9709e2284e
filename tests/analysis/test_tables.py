"""The tables say what the records say: recomputed here from the synthetic runs by other means."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from scipy import stats as scipy_stats

from clipbench.analysis import collect, load, panel_tables, panels
from clipbench.analysis.groups import baseline_of
from clipbench.analysis.page.advice import Finding, advice, findings
from clipbench.analysis.stats import Interval
from clipbench.analysis.tables import Table, estimate, number
from clipbench.analysis.targets import find_target, to_target
from clipbench.analysis.timing import step_times
from tests.analysis.synthetic import write_calibration, write_run


def tables(root, **options):
    (panel,) = panels(load(root, "toy/cpu"))
    return panel, panel_tables(panel, root, **options)


def records(root, method):
    found = [json.loads(p.read_text()) for p in (root / "runs").rglob("run.json")]
    return [r for r in found if r["method"] == method and r["role"] == "single"]


def cell(table, row, column):
    index = next(i for i, name in enumerate(table.columns) if name.startswith(column))
    return next(r[index] for r in table.rows if r[0] == row)


def test_final_metrics_are_mean_interval_and_n(results):
    _, (final, _) = tables(results)
    values = np.array([r["final"]["test_accuracy"] for r in records(results, "ps_clip")])
    half = scipy_stats.t.ppf(0.975, 5) * values.std(ddof=1) / math.sqrt(6)
    low, high = values.mean() - half, values.mean() + half
    expected = f"{100 * values.mean():.1f} % [{100 * low:.1f}, {100 * high:.1f}] (n = 6)"
    assert cell(final, "ps_clip", "test accuracy") == expected


def test_diverged_runs_are_counted_and_not_averaged(results):
    _, (final, _) = tables(results)
    assert cell(final, "sgd", "ok / diverged / failed") == "5 / 1 / 0"
    assert cell(final, "sgd", "test accuracy").endswith("(n = 5)")


def test_failed_and_unfinished_runs_are_counted(tmp_path):
    write_run(tmp_path, seed=0)
    write_run(tmp_path, seed=1, status="failed")
    write_run(tmp_path, seed=2, status="running")
    collect(tmp_path)
    _, (final, _) = tables(tmp_path)
    assert cell(final, "sgd", "ok / diverged / failed") == "1 / 0 / 1 (1 unfinished)"


def test_difference_is_paired_by_seed(results):
    _, (_, against) = tables(results)
    base = {r["seed"]: r["final"]["test_accuracy"] for r in records(results, "sgd") if r["status"] == "ok"}
    other = {r["seed"]: r["final"]["test_accuracy"] for r in records(results, "ps_clip")}
    mean = 100 * np.mean([other[s] - base[s] for s in base])
    text = cell(against, "ps_clip", "test accuracy − sgd")
    assert text.startswith(f"{mean:+.1f} points [")
    assert text.endswith("(n = 5)")
    assert cell(against, "ps_clip", "verdict") == "better"
    assert cell(against, "sgd", "verdict") == "baseline"


def test_no_verdict_below_five_seeds(tmp_path):
    for method in ("sgd", "ps_clip"):
        for seed in range(4):
            write_run(tmp_path, method, seed)
    collect(tmp_path)
    _, (_, against) = tables(tmp_path)
    assert cell(against, "ps_clip", "verdict") == "no verdict (n < 5)"


def test_a_method_that_diverges_is_not_called_better(tmp_path):
    for seed in range(7):
        write_run(tmp_path, "sgd", seed)
        write_run(tmp_path, "ps_clip", seed, status="diverged" if seed > 4 else "ok")
    collect(tmp_path)
    _, (_, against) = tables(tmp_path)
    assert cell(against, "ps_clip", "verdict") == "no verdict (diverged more often)"
    assert cell(against, "ps_clip", "P(better)").startswith("0.71"), "5 of 7 runs beat every run of sgd"


def test_step_time_is_raw_and_says_so(results):
    _, (final, _) = tables(results)
    seconds = {m: np.median([r["train_step_seconds"] for r in records(results, m)]) for m in ("sgd", "ps_clip")}
    assert cell(final, "ps_clip", "step time (raw)") == f"{seconds['ps_clip'] / seconds['sgd']:.2f}×"
    assert any("RAW" in note for note in final.notes)


def test_step_time_is_calibrated_where_there_is_a_calibration(calibrated):
    panel, (final, against) = tables(calibrated)
    assert cell(final, "ps_clip", "step time (calibrated)") == "1.70× [1.68, 1.72]"
    assert any("calibrated on Test CPU, 2 threads, 30 interleaved rounds" in note for note in final.notes)
    assert any(column == "seconds to target (calibrated)" for column in against.columns)
    goal, times = find_target(panel), step_times(panel, calibrated)
    variant = panel.variants[-1]
    steps, seconds = (to_target(variant, panel, goal, times, axis) for axis in ("step", "seconds"))
    assert seconds.median == pytest.approx(steps.median * 0.017)


def test_calibration_of_another_baseline_is_a_plain_ratio(calibrated):
    (panel,) = panels(load(calibrated, "toy/cpu"))
    times = step_times(panel, calibrated, "norm_clip")
    assert times.ratios["ps_clip"][0] == pytest.approx(1.7 / 1.04)
    assert math.isnan(times.ratios["ps_clip"][1])


def test_calibrated_and_raw_seconds_are_never_mixed(tmp_path):
    for method in ("sgd", "unknown"):
        write_run(tmp_path, method)
    write_calibration(tmp_path)
    collect(tmp_path)
    (panel,) = panels(load(tmp_path, "toy/cpu"))
    times = step_times(panel, tmp_path)
    assert times.source == "raw"
    assert "No calibration of unknown." in times.notes[0]


def test_runs_that_went_together_have_no_step_time_of_their_own(tmp_path):
    for seed in range(3):
        write_run(tmp_path, "sgd", seed)
        write_run(tmp_path, "norm_clip", seed)
        write_run(tmp_path, "ps_clip", seed, together=20)
    collect(tmp_path)
    _, (final, against) = tables(tmp_path)
    assert cell(final, "ps_clip", "step time") == "–"
    assert cell(final, "norm_clip", "step time").endswith("×")
    assert any("None of ps_clip, whose runs went together." in note for note in final.notes)
    assert cell(against, "ps_clip", "seconds to target") == "–"
    assert cell(against, "ps_clip", "steps to target") != "–"


def test_the_advice_names_calibrated_step_times_only(calibrated, results):
    for root, cost in ((calibrated, "1.70× [1.68, 1.72]"), (results, "–")):
        (panel,) = panels(load(root, "toy/cpu"))
        assert {found.label: found.cost for found in findings(panel, root)}["ps_clip"] == cost


def test_methods_of_which_the_runs_say_the_same_share_a_sentence():
    one = Finding("a/cpu", "norm_clip", "test_loss", Interval(-1.0, -1.2, -0.8, 5), "better", "–", 0.5)
    text = advice([one, one._replace(label="ps_clip"), one._replace(label="u_clip", word="worse")])
    assert "- `norm_clip`, `ps_clip`: better than no clipping on a/cpu.\n- `u_clip`: worse on a/cpu.\n" in text


def test_a_calibration_of_other_code_is_not_used_and_that_is_said(tmp_path):
    for method in ("sgd", "norm_clip"):
        write_run(tmp_path, method, fingerprint="e" * 16)
    write_calibration(tmp_path)
    collect(tmp_path)
    (panel,) = panels(load(tmp_path, "toy/cpu"))
    times = step_times(panel, tmp_path)
    assert times.source == "raw"
    assert "The calibrations of sgd, norm_clip are of another code." in times.notes[0]


def test_the_calibration_of_the_runs_own_machine_is_taken(tmp_path):
    import pandas as pd

    write_run(tmp_path, "sgd")
    collect(tmp_path)
    write_calibration(tmp_path)
    path = tmp_path / "data" / "calibration.parquet"
    own = pd.read_parquet(path)
    pd.concat([own, own.assign(device="GPU", step_seconds=9.0), own.assign(threads=64)]).to_parquet(path)
    (panel,) = panels(load(tmp_path, "toy/cpu"))
    times = step_times(panel, tmp_path)
    assert times.seconds["sgd"] == 0.01
    assert "Test CPU, 2 threads" in times.notes[0]


def test_target_is_nine_tenths_of_the_best_methods_progress(results):
    panel, _ = tables(results)
    goal = find_target(panel)
    rows = panel.experiment.metrics
    ids = {run for v in panel.variants for run in v.runs["run_id"]}
    rows = rows[rows["run_id"].isin(ids) & (rows["split"] == "validation") & (rows["metric"] == "accuracy")]
    start = rows[rows["step"] == rows["step"].min()]["value"].mean()
    best = np.mean([r["final"]["validation_accuracy"] for r in records(results, "ps_clip")])
    assert goal.value == pytest.approx(start + 0.9 * (best - start))
    sgd, ps_clip = panel.variants[0], panel.variants[-1]
    times = step_times(panel, results)
    reached = to_target(ps_clip, panel, goal, times, "step")
    assert reached.reached == reached.n == 6
    never = to_target(sgd, panel, goal, times, "step")
    assert (never.reached, never.n, never.median) == (0, 6, math.inf), "the diverged run counts too"


def test_given_target(results):
    panel, (_, against) = tables(results, target=0.05)
    assert find_target(panel, 0.05).origin == "given"
    assert cell(against, "sgd", "steps to target").endswith("(6/6)"), "before it diverged, the sixth got there too"


def test_no_target_where_nothing_got_better(tmp_path):
    write_run(tmp_path, quality=-1.0, accuracy=False)
    collect(tmp_path)
    panel, (_, against) = tables(tmp_path)
    assert find_target(panel) is None
    assert "steps to target" not in against.columns


def test_without_a_baseline_nothing_is_compared(tmp_path):
    for method in ("norm_clip", "ps_clip"):
        write_run(tmp_path, method)
    collect(tmp_path)
    panel, (final, against) = tables(tmp_path)
    assert baseline_of(panel.variants[0], panel) is None
    assert cell(against, "ps_clip", "verdict") == "–"
    assert cell(final, "ps_clip", "step time") == "–"


@pytest.mark.parametrize(
    ("value", "spread", "signed", "expected"),
    [
        (1.23456, 0.0321, False, "1.235"), (1.23456, 3.21, False, "1.2"), (123.456, 45.0, False, "123"),
        (-0.5, 0.012, True, "−0.500"), (0.5, 0.012, True, "+0.500"), (0.0, math.nan, False, "0"),
        (math.inf, math.nan, False, "∞"), (math.nan, math.nan, False, "–"), (1.5e-6, 1e-7, False, "1.50e-06"),
        (2.5e9, 1e7, False, "2.50e+09"), (7.0, math.nan, False, "7.000"),
    ],
)  # fmt: skip
def test_number(value, spread, signed, expected):
    assert number(value, spread, signed) == expected


def test_estimate():
    assert estimate(Interval(0.258, 0.251, 0.265, 5), "test_accuracy") == "25.8 % [25.1, 26.5] (n = 5)"
    assert estimate(Interval(0.25812, 0.25802, 0.25822, 5), "accuracy") == "25.81 % [25.80, 25.82] (n = 5)"
    assert estimate(Interval(-0.01, -0.02, 0.0, 5), "accuracy", signed=True) == "−1.0 points [−2.0, +0.0] (n = 5)"
    assert estimate(Interval(1.234, 1.201, 1.267, 5), "loss") == "1.234 [1.201, 1.267] (n = 5)"
    assert estimate(Interval(1.234, math.nan, math.nan, 1), "loss") == "1.234 (n = 1)"
    assert estimate(Interval(math.nan, math.nan, math.nan, 0), "loss") == "–"


def test_table_texts():
    table = Table("Title", ["method", "a|b"], [["sgd", "1"], ["ps_clip", "22"]], ["note"])
    assert table.markdown() == (
        "### Title\n\n| method | a\\|b |\n| --- | ---: |\n| sgd | 1 |\n| ps_clip | 22 |\n\n- note\n"
    )
    assert table.text().splitlines()[1:] == [
        "method   a|b", "-------  ---", "sgd        1", "ps_clip   22", "  note",
    ]  # fmt: skip
