"""The figures of studies: what is drawn where, from the rows of a small study."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from clipbench.analysis import collect, load, plots
from clipbench.analysis.panel_grid import grid, theory_line
from clipbench.analysis.study_plots import study_figures
from clipbench.analysis.study_rows import interval_of_parts
from clipbench.cli.compose import compose
from clipbench.runs.execute import execute


def test_a_theory_line_has_the_slope_and_lies_below_every_point() -> None:
    _, axes = grid(1, 1)
    axis = axes[0][0]
    x = np.array([10.0, 100.0, 1000.0])
    axis.plot(x, 5 * x**-0.3)
    axis.plot(x, 3 * x**-0.1)
    theory_line(axis, -0.2)
    drawn = np.asarray(axis.get_lines()[-1].get_xydata(), dtype=float)
    (x0, y0), (x1, y1) = drawn
    assert (x0, x1) == (10.0, 1000.0)
    assert np.log(y1 / y0) / np.log(x1 / x0) == pytest.approx(-0.2)
    for line in axis.get_lines()[:2]:
        points = np.asarray(line.get_xydata(), dtype=float)
        assert (points[:, 1] > y0 * (points[:, 0] / x0) ** -0.2).all()


def test_bands_are_student_intervals_over_groups() -> None:
    parts = pd.DataFrame({"0": [1.0, 2.0], "1": [2.0, 2.0], "2": [3.0, 2.0]}, index=[8, 16])
    band = interval_of_parts(parts)
    assert band.loc[16].tolist() == [2.0, 2.0]
    assert band.loc[8, "high"] - 2 == pytest.approx(4.302653 / np.sqrt(3), rel=1e-6)
    assert interval_of_parts(parts[["0"]]).empty


@pytest.mark.slow
@pytest.mark.parametrize(
    ("experiment", "figures"),
    [
        ("rates", {"rates": 1}),
        ("rates_matrix", {"rates": 1}),
        ("estimator_error", {"norm_1": 1}),
        ("spectrum", {"layers": 2, "spectra": 3}),
        ("trace_regression", {"error": 2}),
    ],
)
def test_a_study_is_drawn(experiment: str, figures: dict[str, int], tmp_path: Path) -> None:
    """Every panel has lines, every line more than one point, and the file is the same twice."""
    words = [f"experiment={experiment}/smoke", f"paths.results={tmp_path}"]
    execute(compose(words), lambda line: None)
    collect(tmp_path)
    drawn = study_figures(load(tmp_path, f"{experiment}/smoke"))
    assert {name: sum(axis.axison for axis in figure.axes) for name, figure in drawn.items()} == figures
    for name, figure in drawn.items():
        shown = [line for axis in figure.axes if axis.axison for line in axis.get_lines()]
        assert any(len(np.asarray(line.get_xydata())) > 1 for line in shown)
        first = [path.read_bytes() for path in plots.save(figure, tmp_path, name)]
        again = study_figures(load(tmp_path, f"{experiment}/smoke"))[name]
        assert [path.read_bytes() for path in plots.save(again, tmp_path, name)] == first
