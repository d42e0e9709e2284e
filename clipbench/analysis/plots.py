"""The figures: curves against steps and against training seconds side by side, and learning-rate
sensitivity."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter
from PIL import Image

from clipbench.analysis.curves import Broken, Curve, Floats, broken_curves, mean_curve
from clipbench.analysis.groups import BASELINE, Panel, Variant
from clipbench.analysis.sensitivity import Sensitivity
from clipbench.analysis.style import RC, Look, looks
from clipbench.analysis.tables import ended
from clipbench.analysis.timing import StepTimes, step_times
from clipbench.runs.files import atomic_write
from clipbench.wording import amount

Row = tuple[str, str]  # split, metric
Position = Callable[[Curve | Broken], Floats]  # where on the x axis the points of a curve are
COLOURS = 128  # of a stored picture
CROSS: dict[str, Any] = {
    "marker": "X",
    "linestyle": "none",
    "markeredgecolor": "white",
    "markeredgewidth": 0.6,
}
BEYOND: dict[str, Any] = {**CROSS, "marker": "^"}


def save(figure: Figure, results: Path, slug: str) -> list[Path]:
    """Write results/figures/<slug>.png (200 dpi) and .svg, the same bytes for the same data: no date, fixed
    ids."""
    folder = results / "figures"
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for kind, metadata in (("png", {"Software": None}), ("svg", {"Date": None, "Creator": None})):
        path = folder / f"{slug}.{kind}"
        atomic_write(path, partial(_draw, figure, kind, metadata))
        written.append(path)
    return written


def _draw(figure: Figure, kind: str, metadata: dict[str, None], path: Path) -> None:
    with matplotlib.rc_context(RC):
        figure.savefig(path, format=kind, metadata=metadata, bbox_inches="tight")
    if kind == "png":
        _fewer_colours(path)


def _fewer_colours(path: Path) -> None:
    """Write a picture of lines again with a palette: a third of the bytes, and no difference to the eye."""
    with Image.open(path) as picture:
        plain = picture.convert("RGB").quantize(COLOURS, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    plain.save(path, format="PNG", optimize=True, dpi=(RC["savefig.dpi"],) * 2)


def rows_of(panel: Panel) -> list[Row]:
    """What the figure shows: training loss and validation accuracy, or without an accuracy the validation
    loss.

    Without an accuracy the training loss is shown only where nothing was evaluated: in regression with
    heavy-tailed labels it is the noise itself.
    """
    ids = {run for v in panel.variants for run in v.runs["run_id"]}
    table = panel.experiment.metrics
    table = table[table["run_id"].isin(ids)].drop_duplicates(["split", "metric", "step"])
    points = Counter(zip(table["split"], table["metric"], strict=True))
    curves = {row for row, count in points.items() if count > 1}
    choices: list[list[Row]] = [
        [("train", "loss"), ("validation", "accuracy")],
        [("validation", "accuracy")],
        [("validation", "loss")],
        [("train", "loss")],
    ]
    return next((rows for rows in choices if curves.issuperset(rows)), [])


def comparison(panel: Panel, results: Path, baseline: str = BASELINE, rows: Sequence[Row] = ()) -> Figure | None:
    """The panel's curves, against steps (left) and, where known, training seconds (right); None without a curve.

    `rows` are the curves to draw, one below the other; without them, those of `rows_of`.
    """
    rows = rows or rows_of(panel)
    if not rows:
        return None
    times = step_times(panel, results, baseline)
    styles = looks([v.method for v in panel.variants])
    timed = not all(math.isnan(value) for value in times.seconds.values())
    with matplotlib.rc_context(RC):
        figure = Figure(figsize=(7.0, 2.35 * len(rows) + 0.75), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots(len(rows), 1 + timed, sharex="col", sharey="row", squeeze=False)
        for pair, row in zip(axes, rows, strict=True):
            _draw_row(pair, panel, row, styles, times)
        axes[-1][0].set_xlabel("optimizer steps")
        source = "steps × calibrated step time" if times.calibrated else "raw, not calibrated"
        if timed:
            axes[-1][1].set_xlabel(f"training seconds ({source})")
        for axis in axes[-1]:
            axis.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))
            axis.xaxis.set_major_formatter(
                FuncFormatter(lambda value, _: f"{value:,.6g}".replace(",", "\N{THIN SPACE}"))
            )
            axis.set_xlim(left=0)
        _legend(figure, panel, styles)
    return figure


def _draw_row(pair: Sequence[Axes], panel: Panel, row: Row, styles: list[Look], times: StepTimes) -> None:
    """One metric: its means and bands, the diverged runs as thin lines, and a cross where each was last
    seen."""
    curves = [mean_curve(panel, v, *row) for v in panel.variants]
    broken = [broken_curves(panel, v, *row) for v in panel.variants]
    _dress(pair, row, curves, broken)
    low, high = pair[0].get_ylim()
    for axis, seconds in zip(pair, (False, True), strict=False):  # without seconds there is one axis
        for variant, style, curve, lost in zip(panel.variants, styles, curves, broken, strict=True):
            x = _position(variant, times, seconds)
            if curve is not None:
                _draw_mean(axis, curve, x(curve), style)
            for run in lost:
                axis.plot(x(run), run.value, color=style.colour, linestyle=style.dash, linewidth=0.8)
                y = min(max(float(run.value[-1]), low), high)  # at the edge where it has left the axis by then
                axis.plot(x(run)[-1], y, color=style.colour, markersize=7, clip_on=False, zorder=5, **CROSS)


def _position(variant: Variant, times: StepTimes, seconds: bool) -> Position:
    if not seconds:
        return lambda line: line.step
    if math.isnan(times.seconds[variant.label]):
        return lambda line: np.full(len(line.step), np.nan)
    if times.calibrated:
        return lambda line: line.step * times.seconds[variant.label]
    return lambda line: line.seconds


def _draw_mean(axis: Axes, curve: Curve, x: Floats, style: Look) -> None:
    every = max(1, len(curve.step) // 6)
    marks = (every // 2, every) if len(curve.step) > 6 else (0, 1)
    axis.plot(x, curve.mean, color=style.colour, linestyle=style.dash, marker=style.marker, markevery=marks)
    if curve.n > 1:
        axis.fill_between(x, curve.low, curve.high, color=style.colour, alpha=0.14, linewidth=0)


def _dress(pair: Sequence[Axes], row: Row, curves: list[Curve | None], broken: list[list[Broken]]) -> None:
    """Label, scale and limits of one row: logarithmic where the means of a positive metric span a factor of
    20.

    The means decide the range: a band or a diverging run may leave it, and must not flatten everything else.
    """
    split, metric = row
    name = {"train": "training"}.get(split, split)
    pair[0].set_ylabel(f"{name} {metric}" + (" (%)" if metric == "accuracy" else ""))
    lines = [c.mean for c in curves if c is not None] or [b.value for runs in broken for b in runs] or [np.ones(1)]
    means = np.concatenate(lines)
    low, high = float(means.min()), float(means.max())
    if metric == "accuracy":
        pair[0].yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.3g}"))
    if metric != "accuracy" and low > 0 and high > 20 * low:
        pair[0].set_yscale("log", nonpositive="clip")
        pair[0].set_ylim(low / 1.3, high * 1.3)
    elif high > low:
        pair[0].set_ylim(low - 0.08 * (high - low), high + 0.08 * (high - low))


def _legend(figure: Figure, panel: Panel, styles: list[Look]) -> None:
    handles = []
    for variant, style in zip(panel.variants, styles, strict=True):
        ends = ended(variant)
        parts = [f"n = {ends['ok']}"] + [f"{ends[k]} {k}" for k in ("diverged", "failed", "unfinished") if ends[k]]
        handles.append(_handle(style, f"{variant.label} ({', '.join(parts)})"))
    if any(ended(v)["diverged"] for v in panel.variants):
        handles.append(Line2D([], [], color="#777777", markersize=7, label="diverged", **CROSS))
    labels = [str(handle.get_label()) for handle in handles]
    columns = len(handles) if sum(len(label) + 9 for label in labels) < 110 else 3
    columns = columns if max(map(len, labels)) < 36 else 2
    figure.legend(handles=handles, loc="outside upper center", ncols=columns, handlelength=3.2)


def _handle(style: Look, label: str) -> Line2D:
    return Line2D([], [], color=style.colour, linestyle=style.dash, marker=style.marker, label=label)


def sensitivity(data: Sensitivity) -> Figure:
    """Final validation loss of every tuning trial against its learning rate (points), with the best of
    neighbouring trials (lines).

    Trials far above all others are small triangles at the upper edge, so that a few of them do not press the rest into
    a line; diverged trials are crosses above the axis, one line of them per method.
    """
    styles = looks([s.method for s in data.methods])
    with matplotlib.rc_context(RC):
        figure = Figure(figsize=(5.2, 3.7), layout="constrained")
        FigureCanvasAgg(figure)
        axis = figure.subplots()
        rates = np.concatenate([s.lr for s in data.methods])
        axis.set_xlim(rates.min() / 1.25, rates.max() * 1.25)
        axis.set_xscale("log")
        top = _sensitivity_limits(axis, data)
        above = axis.get_xaxis_transform()
        for i, (trials, style) in enumerate(zip(data.methods, styles, strict=True)):
            good, beyond = trials.loss <= top, np.isfinite(trials.loss) & (trials.loss > top)
            lost = ~good & ~beyond
            dots: dict[str, Any] = {
                "color": style.colour,
                "marker": style.marker,
                "linestyle": "none",
                "alpha": 0.4,
            }
            axis.plot(trials.lr[good], trials.loss[good], markersize=3.5, markeredgewidth=0, **dots)
            edge = np.full(beyond.sum(), 0.985 - 0.03 * i)  # one line of them per method, too
            axis.plot(trials.lr[beyond], edge, color=style.colour, transform=above, markersize=5, **BEYOND)
            height = np.full(lost.sum(), 1.03 + 0.05 * (len(data.methods) - 1 - i))
            axis.plot(
                trials.lr[lost],
                height,
                color=style.colour,
                transform=above,
                clip_on=False,
                markersize=6,
                **CROSS,
            )
            lr, best = trials.envelope()
            axis.plot(lr, best, color=style.colour, linestyle=style.dash, marker=style.marker)
        axis.set_xlabel("learning rate")
        axis.set_ylabel("final validation loss")
        _sensitivity_legend(figure, data, styles, top)
    return figure


def _sensitivity_limits(axis: Axes, data: Sensitivity) -> float:
    """Logarithmic where the trials span more than a factor of 5. Returns the loss from which on a trial has left the
    axis: far above the best of all neighbours and above three quarters of the trials, else infinity."""
    values = np.concatenate([s.loss[np.isfinite(s.loss)] for s in data.methods])
    if not len(values):
        return math.inf
    low, high = float(values.min()), float(values.max())
    top = 3 * max(float(np.quantile(values, 0.75)), *(float(s.envelope()[1].max(initial=low)) for s in data.methods))
    top = top if low > 0 and high > top else math.inf
    high = min(high, top)
    if low > 0 and high > 5 * low:
        axis.set_yscale("log")
        if high < 1000 * low:
            axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.yaxis.set_minor_formatter(NullFormatter())
        axis.set_ylim(low / 1.15, high * 1.15)
    elif high > low:
        axis.set_ylim(low - 0.06 * (high - low), high + 0.06 * (high - low))
    return top


def _sensitivity_legend(figure: Figure, data: Sensitivity, styles: list[Look], top: float) -> None:
    pairs = zip(data.methods, styles, strict=True)
    handles = [_handle(s, f"{t.method} ({amount(len(t.lr), 'trial')}, {t.diverged} diverged)") for t, s in pairs]
    if any(t.diverged for t in data.methods):
        handles.append(Line2D([], [], color="#777777", markersize=6, label="diverged trial", **CROSS))
    if math.isfinite(top):
        handles.append(Line2D([], [], color="#777777", markersize=5, label="loss above the axis", **BEYOND))
    figure.legend(handles=handles, loc="outside upper center", ncols=2, handlelength=3.2)
