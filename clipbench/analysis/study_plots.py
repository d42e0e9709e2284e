"""The figures of studies: error against samples with the theory's slope, quantiles, spectra, layers, thresholds."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from clipbench.analysis.load import Experiment
from clipbench.analysis.panel_grid import draw_line, grid, hide_empty, label, legend, log_axes, theory_line
from clipbench.analysis.study_rows import interval_of_parts, jackknife, pick, study_table
from clipbench.analysis.style import DASHES, MARKERS, RC, Look, look, looks
from clipbench.wording import amount

THIN = "\N{THIN SPACE}"  # between groups of three digits
MOST_LAYERS = 6  # of a figure of spectra


class Cell(NamedTuple):
    """One run of a study: the options of the study, and its rows."""

    study: dict[str, Any]
    table: pd.DataFrame


def study_figures(experiment: Experiment) -> dict[str, Figure]:
    """The figures of a study's finished runs, by what is added to the experiment's name; none without such runs."""
    done = experiment.runs[experiment.runs["status"] == "ok"]
    cells: dict[str, list[Cell]] = {}
    for _, run in done.iterrows():
        study = run["config"].get("study") or {}
        if study.get("_target_"):
            cells.setdefault(str(study["name"]), []).append(Cell(study, study_table(experiment, run["run_id"])))
    figures: dict[str, Figure] = {}
    for name, own in cells.items():
        for draw in DRAWN.get(name, ()):
            with matplotlib.rc_context(RC):
                figures |= draw(own)
    return figures


def rate_figures(cells: Sequence[Cell]) -> dict[str, Figure]:
    """Mean gradient norm against samples K, a panel a problem and p; the dashed line has the theory's slope."""
    methods = _labels(cells, "gradient_norm", "method")
    styles = dict(zip(methods, looks(methods), strict=True))
    figure, axes, panels = _panels(cells, _problem, _power)
    for axis, cell in panels:
        for method in methods:
            whole = pick(cell.table, "gradient_norm", method=method, quantile="mean")
            if len(whole):
                draw_line(axis, whole, styles[method], _band(cell.table, method))
        theory_line(axis, -(_power(cell) - 1) / (3 * _power(cell) - 2))
        log_axes(axis, f"{_problem(cell)}, p = {_power(cell):g}")
    _finish(figure, axes, ("samples K", "mean gradient norm"), styles, "slope −(p−1)/(3p−2)")
    return {"rates": figure}


def quantile_figures(cells: Sequence[Cell]) -> dict[str, Figure]:
    """Quantiles of the gradient norm over seeds against 1/δ at the largest K; none where too few were recorded."""
    kept = [cell for cell in cells if len(_levels(cell.table)) > 2]
    if not kept:
        return {}
    methods = _labels(kept, "gradient_norm", "method")
    styles = dict(zip(methods, looks(methods), strict=True))
    figure, axes, panels = _panels(kept, _problem, _power)
    for axis, cell in panels:
        last = int(cell.table["step"].max())
        for method in methods:
            found = {
                1 / (1 - level): pick(cell.table, "gradient_norm", method=method, quantile=f"{level:g}").get(last)
                for level in _levels(cell.table)
            }
            curve = pd.Series({x: y for x, y in found.items() if y is not None}, dtype=float).sort_index()
            draw_line(axis, curve, styles[method], None)
        log_axes(axis, f"{_problem(cell)}, p = {_power(cell):g}, K = {f'{last:,}'.replace(',', THIN)}")
    _finish(figure, axes, ("1/δ", "(1 − δ)-quantile of the gradient norm"), styles, None)
    return {"quantiles": figure}


def estimator_figures(cells: Sequence[Cell]) -> dict[str, Figure]:
    """Error of each estimator against the samples n, a panel a noise and tail index, a figure a mean's norm."""
    figures = {}
    for norm in _values(cells, lambda cell: float(cell.study["mean_norm"])):
        own = [cell for cell in cells if float(cell.study["mean_norm"]) == norm]
        level = "0.999" if all("0.999" in set(cell.table.get("quantile", ())) for cell in own) else "0.5"
        names = [
            name for name in _labels(own, "error", "estimator")
            if any(len(pick(cell.table, "error", estimator=name, quantile=level)) for cell in own)
        ]  # fmt: skip
        styles = dict(zip(names, looks(names), strict=True))
        figure, axes, panels = _panels(own, _problem, _index)
        for axis, cell in panels:
            for name in names:
                draw_line(axis, pick(cell.table, "error", estimator=name, quantile=level), styles[name], None)
            power = _index(cell) - float(cell.study["margin"])
            theory_line(axis, -(power - 1) / power)
            log_axes(axis, f"{_problem(cell)}, tail index {_index(cell):g}")
        _finish(figure, axes, ("samples n", f"{level}-quantile of the error"), styles, "slope −(p−1)/p")
        figures[f"norm_{norm:g}"] = figure
    return figures


def layer_figures(cells: Sequence[Cell]) -> dict[str, Figure]:
    """How far outliers raise the leading singular value over the bulk, beyond the control, in every layer: D with its
    95 % interval, a panel a checkpoint. Right of the dotted line a layer counts as moved."""
    table, count = cells[0].table, _decisive(cells[0].table)
    rows = table[table["statistic"].isin(["top", "bulk"]) & (table["count"] == count)]
    parts = rows.pivot_table(index=["step", "layer", "part"], columns=["kind", "statistic"], values="value")
    kinds = [kind for kind in dict.fromkeys(rows["kind"]) if kind != "control"]
    layers, steps = list(dict.fromkeys(rows["layer"])), sorted(set(rows["step"]))
    styles = dict(zip(kinds, looks(kinds), strict=True))
    figure, axes = grid(1, len(steps), 1.1 + 0.36 * len(layers))
    for axis, step in zip(axes[0], steps, strict=True):
        for shift, kind in zip(np.linspace(-0.22, 0.22, len(kinds)), kinds, strict=True):
            excess = (parts[kind]["top"] - parts[kind]["bulk"]) - (parts["control"]["top"] - parts["control"]["bulk"])
            for place, layer in enumerate(layers):
                values = excess.loc[step, layer].to_numpy(float)
                own = jackknife(float(values.mean()), [float(np.delete(values, i).mean()) for i in range(len(values))])
                look, y = styles[kind], len(layers) - 1 - place - shift
                axis.plot([own.low, own.high], [y, y], color=look.colour, linewidth=1.2)
                axis.plot(own.estimate, y, color=look.colour, marker=look.marker, linestyle="none")
        axis.axvline(math.log(1.5), color="#777777", linestyle=":", linewidth=1.0)
        axis.axvline(0, color="#777777", linewidth=0.6)
        axis.set_title(f"after {amount(step, 'step')}")
        axis.set_xlabel("D, beyond the control")
        axis.set_ylim(-0.6, len(layers) - 0.4)
        axis.set_yticks(range(len(layers)), [])
    axes[0][0].set_yticks(range(len(layers)), [_short(layer) for layer in reversed(layers)])
    legend(figure, styles, None, line=False)
    return {"layers": figure}


def spectrum_figures(cells: Sequence[Cell]) -> dict[str, Figure]:
    """Singular values by rank, before (clean) and after, at the last checkpoint: geometric means over batches."""
    table = cells[0].table
    rows = table[table["statistic"] == "log_sigma"]
    if rows.empty:
        return {}
    rows = rows[rows["step"] == rows["step"].max()]
    kinds, layers = list(dict.fromkeys(rows["kind"])), _evenly(list(dict.fromkeys(rows["layer"])))
    styles = dict(zip(kinds, looks(kinds), strict=True))
    columns = min(3, len(layers))
    figure, axes = grid(math.ceil(len(layers) / columns), columns)
    for place, layer in enumerate(layers):
        axis = axes[place // columns][place % columns]
        for kind in kinds:
            own = rows[(rows["layer"] == layer) & (rows["kind"] == kind)]
            curve = pd.Series(np.exp(own["value"].to_numpy(float)), index=own["rank"].astype(int)).sort_index()
            draw_line(axis, curve[curve > curve.max() * 1e-6], styles[kind], None, marks=False)
        log_axes(axis, _short(layer))
    hide_empty(axes)
    label(axes, "rank", "singular value")
    legend(figure, styles, None)
    return {"spectra": figure}


def regression_figures(cells: Sequence[Cell]) -> dict[str, Figure]:
    """Error against steps, a panel a kind of clipping, a line a threshold: medians over seeds."""
    table = cells[0].table
    rows = table[table["statistic"] == "error"]
    kinds = [kind for kind in dict.fromkeys(rows["clip"]) if kind != "none"]
    thresholds = list(dict.fromkeys(rows["threshold"]))
    styles = _threshold_looks(thresholds)
    figure, axes = grid(1, len(kinds), 3.0)
    for axis, kind in zip(axes[0], kinds, strict=True):
        for threshold in thresholds:
            own = rows[rows["clip"].isin([kind, "none"]) & (rows["threshold"] == threshold)]
            curve = own.groupby("step")["value"].median()
            draw_line(axis, curve[curve.index > 0], styles[threshold], None)
        log_axes(axis, f"{kind} clipping")
    label(axes, "step", "error, median over seeds")
    words = {name: name if name in ("ema", "quantile") else f"τ = {name}" for name in thresholds}
    legend(figure, {words[n] if n != "none" else "no clipping": look for n, look in styles.items()}, None)
    return {"error": figure}


def _threshold_looks(thresholds: Sequence[str]) -> dict[str, Look]:
    """Constant thresholds from light to dark, so that their order is seen; the rules as everywhere else."""
    rules = {"none": look("sgd"), "ema": look("spectral_clip_ema"), "quantile": look("spectral_clip_quantile")}
    constants = sorted((name for name in thresholds if name not in rules), key=float)
    shades = matplotlib.colormaps["Blues"](np.linspace(0.35, 0.95, len(constants)))
    own = {
        name: Look(matplotlib.colors.to_hex(shade), DASHES[place % 3], MARKERS[place % len(MARKERS)])
        for place, (name, shade) in enumerate(zip(constants, shades, strict=True))
    }
    return {name: (own | rules)[name] for name in thresholds}


Panels = tuple[Figure, list[list[Axes]], list[tuple[Axes, Cell]]]


def _panels(cells: Sequence[Cell], row: Callable[[Cell], Any], column: Callable[[Cell], Any]) -> Panels:
    """A grid with a row for every value of `row` and a column for every one of `column`, and each cell's own panel."""
    rows, columns = _values(cells, row), _values(cells, column)
    figure, axes = grid(len(rows), len(columns))
    return figure, axes, [(axes[rows.index(row(cell))][columns.index(column(cell))], cell) for cell in cells]


def _finish(
    figure: Figure, axes: list[list[Axes]], names: tuple[str, str], styles: dict[str, Look], theory: str | None
) -> None:
    hide_empty(axes)
    label(axes, *names)
    legend(figure, styles, theory)


def _problem(cell: Cell) -> str:
    return str(cell.study.get("problem") or cell.study.get("noise")).replace("_", " ")


def _power(cell: Cell) -> float:
    return float(cell.study["power"])


def _index(cell: Cell) -> float:
    return float(cell.study["index"])


def _values(cells: Sequence[Cell], key: Callable[[Cell], Any]) -> list[Any]:
    return sorted({key(cell) for cell in cells})


def _labels(cells: Sequence[Cell], statistic: str, column: str) -> list[str]:
    """The values of a label in the order of the records, those of the first cell first."""
    return list(dict.fromkeys(
        name for cell in cells for name in cell.table.loc[cell.table["statistic"] == statistic, column]
    ))  # fmt: skip


def _levels(table: pd.DataFrame) -> list[float]:
    names = set(table.loc[table["statistic"] == "gradient_norm", "quantile"].dropna()) - {"mean"}
    return sorted(map(float, names))


def _decisive(table: pd.DataFrame) -> str:
    """The middle number of outliers: the one that decides."""
    counts = sorted({int(count) for count in table["count"].dropna()})
    return str(counts[len(counts) // 2])


def _evenly(layers: list[str]) -> list[str]:
    """At most MOST_LAYERS of them, from the first to the last at equal distances."""
    if len(layers) <= MOST_LAYERS:
        return layers
    return [layers[round(place)] for place in np.linspace(0, len(layers) - 1, MOST_LAYERS)]


def _short(layer: str) -> str:
    return layer.removesuffix(".weight")


def _band(table: pd.DataFrame, method: str) -> pd.DataFrame:
    """low and high by step: 95 % intervals over the groups of seeds."""
    rows = table[(table["statistic"] == "gradient_norm") & (table["method"] == method) & table["part"].notna()]
    return interval_of_parts(rows.pivot_table(index="step", columns="part", values="value"))


DRAWN: dict[str, tuple[Callable[[Sequence[Cell]], dict[str, Figure]], ...]] = {
    "rates": (rate_figures, quantile_figures),
    "rates_matrix": (rate_figures,),
    "estimator_error": (estimator_figures,),
    "spectrum": (layer_figures, spectrum_figures),
    "trace_regression": (regression_figures,),
}
