"""A grid of panels for the figures of studies: lines, the theory's slope, logarithmic axes, one legend above."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

from clipbench.analysis.style import RC, Look

THEORY: dict[str, Any] = {"color": "#777777", "linestyle": (0, (4, 2)), "linewidth": 1.0}
WIDTH = 7.0  # inches, of a page's text


def grid(rows: int, columns: int, height: float | None = None) -> tuple[Figure, list[list[Axes]]]:
    """Panels that share the x axis of their column; `height` of the whole in inches."""
    tall = height or 0.9 + 1.75 * rows
    figure = Figure(figsize=(WIDTH, tall), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, [list(row) for row in figure.subplots(rows, columns, sharex=True, squeeze=False)]


def draw_line(axis: Axes, curve: pd.Series, look: Look, band: pd.DataFrame | None, marks: bool = True) -> None:
    """A curve by its index, with its band (`low` and `high` by the same index) where there is one."""
    x, y = curve.index.to_numpy(float), curve.to_numpy(float)
    every = max(1, len(x) // 6)
    axis.plot(x, y, color=look.colour, linestyle=look.dash, marker=look.marker if marks else None, markevery=every)
    if band is not None and len(band):
        low = np.maximum(band["low"].to_numpy(float), y.min() * 0.5)  # a mean of norms is above 0
        axis.fill_between(band.index.to_numpy(float), low, band["high"], color=look.colour, alpha=0.14, linewidth=0)


def theory_line(axis: Axes, slope: float) -> None:
    """A line of this slope below all others."""
    lines = [np.asarray(line.get_xydata(), dtype=float) for line in axis.get_lines()]
    points = np.concatenate([line for line in lines if len(line)])
    x = np.array([points[:, 0].min(), points[:, 0].max()])
    # Through the lowest point, a little below it: the eye compares slopes, not heights.
    height = float((points[:, 1] / points[:, 0] ** slope).min()) * 0.8
    axis.plot(x, height * x**slope, **THEORY)


def log_axes(axis: Axes, title: str) -> None:
    """Both axes logarithmic, with few and plain labels."""
    axis.set_xscale("log")
    axis.set_yscale("log")
    axis.xaxis.set_minor_formatter(NullFormatter())
    low, high = axis.get_ylim()
    if high < 100 * low:  # plain numbers, some of them between the powers of ten
        axis.yaxis.set_major_locator(MaxNLocator(5) if high < 4 * low else LogLocator(subs=(1, 2, 5)))
        axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.yaxis.set_minor_locator(NullLocator())
    axis.set_title(title)


def hide_empty(axes: Sequence[Sequence[Axes]]) -> None:
    """Leave panels without lines blank."""
    for axis in (axis for row in axes for axis in row):
        if not axis.get_lines():
            axis.set_axis_off()


def label(axes: Sequence[Sequence[Axes]], x: str, y: str) -> None:
    """Name the x axes of the last row, and the one y axis of all."""
    for axis in axes[-1]:
        axis.set_xlabel(x)
    figure = axes[0][0].get_figure()
    assert isinstance(figure, Figure)  # made by _grid
    figure.supylabel(y, fontsize=RC["axes.labelsize"])


def legend(figure: Figure, styles: dict[str, Look], theory: str | None, line: bool = True) -> None:
    """One legend above all panels: a line (or only its marker) for each name, then the theory's."""
    handles = [
        Line2D([], [], color=look.colour, linestyle=look.dash if line else "none", marker=look.marker,
               label=name.replace("_", " "))
        for name, look in styles.items()
    ]  # fmt: skip
    handles += [Line2D([], [], label=theory, **THEORY)] if theory else []
    figure.legend(handles=handles, loc="outside upper center", ncols=min(4, len(handles)), handlelength=3.0)
