"""The figures: what they draw is what the records hold; colours and files are the same every time."""

from __future__ import annotations

import errno
import os
import subprocess
import sys

import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from clipbench.analysis import collect, load, mean_interval, panels, plots
from clipbench.analysis.bounded import metric_interval
from clipbench.analysis.curves import broken_curves, mean_curve
from clipbench.analysis.sensitivity import Sensitivity, Trials, sensitivity, sensitivity_table
from clipbench.analysis.style import COLOURS, KNOWN, look, looks
from clipbench.errors import RecordError
from tests.analysis.synthetic import write_run


@pytest.fixture(scope="module")
def panel(results):
    (found,) = panels(load(results, "toy/cpu"))
    return found


def lines(axis, colour):
    return [line for line in axis.get_lines() if to_hex(line.get_color()) == colour.lower()]


def test_mean_curve_is_mean_and_interval_at_each_step(panel):
    variant = panel.variants[-1]
    curve = mean_curve(panel, variant, "validation", "loss")
    values = [panel.experiment.curve(run, "validation", "loss").set_index("step") for run in variant.runs["run_id"]]
    for i in (0, 7, -1):
        step = curve.step[i]
        expected = metric_interval([c.loc[step, "value"] for c in values], "loss")
        assert (curve.mean[i], curve.low[i], curve.high[i], curve.n) == pytest.approx(tuple(expected))
        assert curve.seconds[i] == pytest.approx(np.mean([c.loc[step, "train_seconds"] for c in values]))


def test_curve_of_many_seeds_uses_the_bootstrap(tmp_path):
    for seed in range(20):
        write_run(tmp_path, seed=seed, steps=40)
    collect(tmp_path)
    (panel,) = panels(load(tmp_path, "toy/cpu"))
    curve = mean_curve(panel, panel.variants[0], "train", "loss")
    ends = [panel.experiment.curve(r, "train", "loss")["value"].iloc[-1] for r in panel.variants[0].runs["run_id"]]
    assert (curve.low[-1], curve.high[-1]) == tuple(mean_interval(ends))[1:3]


def test_seeds_with_other_evaluation_steps_meet_where_they_can(tmp_path):
    write_run(tmp_path, seed=0, every=20)
    write_run(tmp_path, seed=1, every=40)
    collect(tmp_path)
    (panel,) = panels(load(tmp_path, "toy/cpu"))
    curve = mean_curve(panel, panel.variants[0], "train", "loss")
    assert curve.step.tolist() == list(range(40, 401, 40))
    assert curve.n == 2


def test_comparison_draws_means_against_steps_and_seconds(panel, results):
    figure = plots.comparison(panel, results)
    top_left, top_right, bottom_left, _ = figure.axes
    assert bottom_left.get_ylabel() == "validation accuracy (%)"
    curve = mean_curve(panel, panel.variants[-1], "train", "loss")
    (left,), (right,) = lines(top_left, look("ps_clip").colour), lines(top_right, look("ps_clip").colour)
    np.testing.assert_allclose(left.get_xydata(), np.stack([curve.step, curve.mean], 1))
    np.testing.assert_allclose(right.get_xydata(), np.stack([curve.seconds, curve.mean], 1))
    assert "raw" in figure.axes[3].get_xlabel()


@pytest.mark.parametrize("alone", [("sgd",), ()])
def test_runs_that_went_together_are_drawn_against_steps_only(tmp_path, alone):
    for method in ("sgd", "norm_clip"):
        for seed in range(2):
            write_run(tmp_path, method, seed, together=None if method in alone else 2)
    collect(tmp_path)
    (panel,) = panels(load(tmp_path, "toy/cpu"))
    figure = plots.comparison(panel, tmp_path)
    drawn = [[bool(np.isfinite(line.get_xdata()).all()) for line in axis.get_lines()] for axis in figure.axes]
    assert drawn == ([[True, True], [True, False]] * 2 if alone else [[True, True]] * 2)


def test_calibrated_seconds_are_steps_times_the_calibrated_step(calibrated):
    (panel,) = panels(load(calibrated, "toy/cpu"))
    figure = plots.comparison(panel, calibrated)
    (line,) = lines(figure.axes[1], look("ps_clip").colour)
    curve = mean_curve(panel, panel.variants[-1], "train", "loss")
    np.testing.assert_allclose(line.get_xdata(), curve.step * 0.017)
    assert "calibrated" in figure.axes[3].get_xlabel()
    assert "raw" not in figure.axes[3].get_xlabel()


def test_diverged_runs_are_drawn_and_counted(panel, results):
    figure = plots.comparison(panel, results)
    mean, lost, cross = lines(figure.axes[0], look("sgd").colour)
    (broken,) = broken_curves(panel, panel.variants[0], "train", "loss")
    np.testing.assert_allclose(lost.get_xydata(), np.stack([broken.step, broken.value], 1))
    assert np.isfinite(broken.value).all()
    assert len(mean.get_xdata()) > len(lost.get_xdata())
    low, high = figure.axes[0].get_ylim()
    assert low <= cross.get_ydata()[0] <= high, "the cross stays where it can be seen"
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == ["sgd (n = 5, 1 diverged)", "norm_clip (n = 6)", "ps_clip (n = 6)", "diverged"]


def test_without_accuracy_the_validation_loss_is_drawn(tmp_path):
    write_run(tmp_path, accuracy=False)
    collect(tmp_path)
    (panel,) = panels(load(tmp_path, "toy/cpu"))
    assert plots.rows_of(panel) == [("validation", "loss")]


def test_all_runs_diverged_is_a_figure_too(tmp_path):
    write_run(tmp_path, status="diverged")
    collect(tmp_path)
    (panel,) = panels(load(tmp_path, "toy/cpu"))
    assert len(plots.save(plots.comparison(panel, tmp_path), tmp_path, "x")) == 2


def test_a_wide_range_gets_a_logarithmic_axis(tmp_path):
    write_run(tmp_path, accuracy=False)
    folder = next((tmp_path / "runs" / "toy" / "cpu").iterdir())
    import pandas as pd

    table = pd.read_parquet(folder / "metrics.parquet")
    table["value"] = np.exp(-table["step"] / 50.0)
    table.to_parquet(folder / "metrics.parquet")
    collect(tmp_path)
    (panel,) = panels(load(tmp_path, "toy/cpu"))
    assert plots.comparison(panel, tmp_path).axes[0].get_yscale() == "log"


def test_files_are_the_same_every_time(panel, results, tmp_path):
    first = {p.suffix: p.read_bytes() for p in plots.save(plots.comparison(panel, results), tmp_path / "a", "x")}
    again = {p.suffix: p.read_bytes() for p in plots.save(plots.comparison(panel, results), tmp_path / "b", "x")}
    assert first == again
    assert set(first) == {".png", ".svg"}
    assert b"<dc:date>" not in first[".svg"]


def test_png_has_200_dots_per_inch(panel, results, tmp_path):
    from PIL import Image

    path = plots.save(plots.comparison(panel, results), tmp_path, "x")[0]
    with Image.open(path) as image:
        assert image.info["dpi"] == pytest.approx((200, 200), abs=0.1)


def test_known_methods_have_colours_of_their_own():
    assert len({look(name).colour for name in KNOWN}) == len(KNOWN)


def test_an_unknown_method_looks_the_same_in_another_process():
    names = ["my_clip", "another", "third_method"]
    code = f"from clipbench.analysis.style import look; print([look(n).colour for n in {names}])"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert other.stdout.strip() == str([look(n).colour for n in names])
    assert {look(n).colour for n in names}.isdisjoint(COLOURS.values()), "no known method's colour is taken"


def test_a_methods_colour_does_not_depend_on_its_company():
    names = ["sgd", "ps_clip", "my_clip", "ps_clip", "ps_clip"]
    styles = looks(names)
    assert [s.colour for s in styles] == [look(n).colour for n in names]
    assert len({(s.colour, str(s.dash)) for s in styles}) == len(names), "two settings differ by their dashes"


def test_sensitivity_uses_tuning_runs_only(results):
    experiment = load(results, "toy/cpu")
    data = sensitivity(experiment)
    assert [(t.method, len(t.lr)) for t in data.methods] == [("sgd", 12), ("norm_clip", 12), ("ps_clip", 12)]
    own = experiment.runs[(experiment.runs["role"] == "tune") & (experiment.runs["method"] == "sgd")]
    assert sorted(data.methods[0].lr) == sorted(own["lr"])
    assert data.methods[0].diverged == (own["status"] == "diverged").sum() > 0
    figure = plots.sensitivity(data)
    assert figure.axes[0].get_xscale() == "log"


def test_a_few_trials_far_above_all_others_do_not_press_the_rest_into_a_line():
    rates, losses = np.geomspace(1e-3, 1, 40), np.full(40, 1.0)
    losses[20:22] = [0.1, 3e4]
    losses[-1] = np.inf
    trials = Trials("sgd", rates, losses, diverged=1, failed=0)
    axis = plots.sensitivity(Sensitivity("toy/cpu", [trials])).axes[0]
    assert 1.0 < axis.get_ylim()[1] < 10, "the axis ends above what all but one of the trials reach"
    triangles = [line for line in axis.lines if line.get_marker() == "^"]
    assert [list(line.get_xdata()) for line in triangles] == [[rates[21]]], "that one stands at the upper edge"
    crosses = [line for line in axis.lines if line.get_marker() == "X"]
    assert [list(line.get_xdata()) for line in crosses] == [[rates[-1]]]


def test_sensitivity_envelope_is_the_best_of_neighbours(results):
    trials = sensitivity(load(results, "toy/cpu")).methods[0]
    lr, best = trials.envelope()
    assert best.min() == trials.loss.min()
    assert (np.diff(lr) > 0).all()
    assert all(value in trials.loss for value in best)


def test_sensitivity_table_by_hand(tmp_path):
    for trial, (lr, loss, status) in enumerate(
        [(0.01, 2.0, "ok"), (0.1, 1.0, "ok"), (0.2, 1.05, "ok"), (1.0, 0.5, "diverged"), (3.0, 0.1, "failed")]
    ):
        write_run(tmp_path, lr=lr, role="tune", trial=trial, status=status, final={"validation_loss": loss})
    collect(tmp_path)
    table = sensitivity_table(sensitivity(load(tmp_path, "toy/cpu")))
    # trials 2, 1, 1.05, ∞ (the failed one is left out): two of four within 10 % of 1, the median (1.05 + 2)/2
    assert table.rows == [["sgd", "4", "1", "1.000", "0.1", "0.1 – 0.2 (×2)", "50 %", "1.525"]]
    assert table.notes[-1] == "1 failed trials are left out."


def test_sensitivity_of_trials_that_all_diverged(tmp_path):
    write_run(tmp_path, role="tune", trial=0, status="diverged")
    collect(tmp_path)
    data = sensitivity(load(tmp_path, "toy/cpu"))
    assert sensitivity_table(data).rows == [["sgd", "1", "1", "–", "–", "–", "–", "–"]]
    plots.save(plots.sensitivity(data), tmp_path, "x")
    write_run(tmp_path, experiment="untuned")
    collect(tmp_path)
    assert sensitivity(load(tmp_path, "untuned")) is None


def test_a_figure_that_cannot_be_written_leaves_the_earlier_one(tmp_path, monkeypatch):
    def full(handle):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    figure = Figure()
    earlier = {path: path.read_bytes() for path in plots.save(figure, tmp_path, "x")}
    figure.text(0.5, 0.5, "another")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RecordError, match="no space left"):
        plots.save(figure, tmp_path, "x")
    assert {path: path.read_bytes() for path in (tmp_path / "figures").iterdir()} == earlier
