"""The figures: curves against steps and against training seconds side by side, and learning-rate sensitivity."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, MaxNLocator

from clipbench.analysis.curves import Curve, broken_curves, mean_curve
from clipbench.analysis.groups import BASELINE, Panel, Variant
from clipbench.analysis.sensitivity import Sensitivity
from clipbench.analysis.style import RC, Look, looks
from clipbench.analysis.tables import ended
from clipbench.analysis.timing import StepTimes, step_times

Row = tuple[str, str]  # split, metric


def save(figure: Figure, results: Path, slug: str) -> list[Path]:
    """Write results/figures/<slug>.png (200 dpi) and .svg, the same bytes for the same data: no date, fixed ids."""
    folder = results / "figures"
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for kind, metadata in (("png", {"Software": None}), ("svg", {"Date": None, "Creator": None})):
        path, aside = folder / f"{slug}.{kind}", folder / f"{slug}.{kind}.part"
        with matplotlib.rc_context(RC):
            figure.savefig(aside, format=kind, metadata=metadata, bbox_inches="tight")
        os.replace(aside, path)
        written.append(path)
    return written


def rows_of(panel: Panel) -> list[Row]:
    """What the figure shows: training loss, and validation accuracy, or validation loss where there is no accuracy."""
    ids = {run for v in panel.variants for run in v.runs["run_id"]}
    table = panel.experiment.metrics
    table = table[table["run_id"].isin(ids)]
    steps = table.groupby(["split", "metric"])["step"].nunique()
    curves = {(str(s), str(m)) for (s, m), count in steps.items() if count > 1}  # type: ignore[misc]
    rows = [("train", "loss")] if ("train", "loss") in curves else []
    return rows + next(([row] for row in (("validation", "accuracy"), ("validation", "loss")) if row in curves), [])


def comparison(panel: Panel, results: Path, baseline: str = BASELINE) -> Figure | None:
    """The panel's curves, against steps (left) and training seconds (right); None where no run has a curve."""
    rows = rows_of(panel)
    if not rows:
        return None
    times = step_times(panel, results, baseline)
    styles = looks([v.method for v in panel.variants])
    with matplotlib.rc_context(RC):
        figure = Figure(figsize=(7.0, 2.35 * len(rows) + 0.75), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots(len(rows), 2, sharex="col", sharey="row", squeeze=False)
        for pair, row in zip(axes, rows, strict=True):
            curves = [mean_curve(panel, v, *row) for v in panel.variants]
            for axis, seconds in zip(pair, (False, True), strict=True):
                for variant, style, curve in zip(panel.variants, styles, curves, strict=True):
                    _draw(axis, panel, variant, row, style, curve, times, seconds)
            _dress(pair, row, curves)
        axes[-1][0].set_xlabel("optimizer steps")
        axes[-1][1].set_xlabel(_seconds_label(times))
        axes[-1][0].xaxis.set_major_formatter(EngFormatter(sep=""))
        for axis in axes[-1]:
            axis.xaxis.set_major_locator(MaxNLocator(6, min_n_ticks=3))
            axis.set_xlim(left=0)
        _legend(figure, panel, styles)
    return figure


def _seconds_label(times: StepTimes) -> str:
    return "training seconds (steps × calibrated step time)" if times.calibrated else "training seconds (raw, not calibrated)"


def _draw(
    axis: Axes, panel: Panel, variant: Variant, row: Row, style: Look, curve: Curve | None, times: StepTimes, seconds: bool
) -> None:
    """One variant: the mean with its band, and each diverged run as a thin line ending in a cross."""

    def x(line: Any) -> Any:
        if not seconds:
            return line.step
        return line.step * times.seconds[variant.label] if times.calibrated else line.seconds

    if curve is not None:
        every = max(1, len(curve.step) // 6)
        axis.plot(
            x(curve), curve.mean, color=style.colour, linestyle=style.dash, marker=style.marker, markevery=(every // 2, every)
        )
        if curve.n > 1:
            axis.fill_between(x(curve), curve.low, curve.high, color=style.colour, alpha=0.18, linewidth=0)
    for broken in broken_curves(panel, variant, *row):
        at = x(broken)
        axis.plot(at, broken.value, color=style.colour, linestyle=style.dash, linewidth=0.7, alpha=0.7)
        axis.plot(at[-1], broken.value[-1], color=style.colour, marker="X", markersize=6, clip_on=False, linestyle="none")


def _dress(pair: Any, row: Row, curves: list[Curve | None]) -> None:
    """Scale, limits and label of one row: a logarithmic axis where the means of a positive metric span a factor of 20."""
    split, metric = row
    means = np.concatenate([c.mean for c in curves if c is not None] or [np.ones(1)])
    logarithmic = metric != "accuracy" and means.min() > 0 and means.max() / means.min() > 20
    name = {"train": "training"}.get(split, split)
    pair[0].set_ylabel(f"{name} {metric}" + (" (%)" if metric == "accuracy" else ""))
    for axis in pair:
        if logarithmic:
            axis.set_yscale("log", nonpositive="clip")
        if metric == "accuracy":
            axis.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.3g}")
    # The means decide the range: a band or a diverging run may leave it, and must not flatten everything else.
    low, high = float(means.min()), float(means.max())
    if logarithmic:
        pair[0].set_ylim(low / 1.3, high * 1.3)
    elif high > low:
        pair[0].set_ylim(low - 0.08 * (high - low), high + 0.08 * (high - low))


def _legend(figure: Figure, panel: Panel, styles: list[Look]) -> None:
    handles = []
    for variant, style in zip(panel.variants, styles, strict=True):
        ends = ended(variant)
        parts = [f"n = {ends['ok']}"] + [f"{ends[k]} {k}" for k in ("diverged", "failed", "unfinished") if ends[k]]
        label = f"{variant.label} ({', '.join(parts)})"
        handles.append(Line2D([], [], color=style.colour, linestyle=style.dash, marker=style.marker, label=label))
    columns = min(len(handles), 3 if max(len(str(h.get_label())) for h in handles) < 34 else 2)
    figure.legend(handles=handles, loc="outside upper center", ncols=columns, handlelength=3.2)


def sensitivity(data: Sensitivity) -> Figure:
    """Final validation loss of every tuning trial against its learning rate, with the best in each part of the range."""
    styles = looks([s.method for s in data.methods])
    with matplotlib.rc_context(RC):
        figure = Figure(figsize=(5.2, 3.5), layout="constrained")
        FigureCanvasAgg(figure)
        axis = figure.subplots()
        values = np.concatenate([s.loss for s in data.methods] or [np.ones(1)])
        good = values[np.isfinite(values)]
        ceiling = float(np.quantile(good, 0.9)) if len(good) else 1.0
        floor = float(good.min()) if len(good) else 0.0
        top = ceiling + 0.08 * (ceiling - floor or 1.0)
        for trials, style in zip(data.methods, styles, strict=True):
            inside = trials.loss <= top
            axis.plot(trials.lr[inside], trials.loss[inside], style.marker, color=style.colour, alpha=0.35, markersize=3.5)
            axis.plot(trials.lr[~inside], np.full((~inside).sum(), top), "X", color=style.colour, alpha=0.6, clip_on=False)
            lr, best = trials.envelope()
            axis.plot(lr, best, color=style.colour, linestyle=style.dash, marker=style.marker)
        axis.set_xscale("log")
        axis.set_ylim(floor - 0.06 * (top - floor), top)
        axis.set_xlabel("learning rate")
        axis.set_ylabel("final validation loss")
        _sensitivity_legend(figure, data, styles)
    return figure


def _sensitivity_legend(figure: Figure, data: Sensitivity, styles: list[Look]) -> None:
    handles = [
        Line2D([], [], color=s.colour, linestyle=s.dash, marker=s.marker, label=f"{t.method} ({len(t.lr)} trials, {t.diverged} diverged)")
        for t, s in zip(data.methods, styles, strict=True)
    ]
    handles.append(Line2D([], [], color="#777777", marker="X", linestyle="none", label="above the axis, or diverged"))
    figure.legend(handles=handles, loc="outside upper center", ncols=2, handlelength=3.2)
