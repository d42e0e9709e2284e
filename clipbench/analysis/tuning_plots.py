"""What tuning found: loss over learning rate and threshold, and the expected best loss against the number of trials."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import matplotlib
import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from clipbench.analysis.groups import method_order
from clipbench.analysis.load import Experiment, final
from clipbench.analysis.panel_grid import draw_line, grid, hide_empty, label, legend
from clipbench.analysis.sensitivity import expected_best
from clipbench.analysis.style import RC, looks

Floats = npt.NDArray[np.float64]
COLUMNS = 3
LEAST = 8  # trials, below which neither map nor curve says anything


class Tried(NamedTuple):
    """The trials of one method: learning rates, the threshold's option (its own name, and values), final losses."""

    method: str
    lr: Floats
    option: str | None
    values: Floats
    loss: Floats


def tuning_figures(experiment: Experiment, metric: str = "validation_loss") -> dict[str, Figure]:
    """A map of the trials and the curve of expected best losses; none where methods have fewer than LEAST trials."""
    found = [one for one in trials(experiment, metric) if len(one.loss) >= LEAST]
    if not any(np.isfinite(one.loss).any() for one in found):
        return {}
    with matplotlib.rc_context(RC):
        figures = {"budget": _budget(found, metric)}
        two = [one for one in found if one.option is not None]
        return figures | ({"map": _map(two, metric)} if two else {})


def trials(experiment: Experiment, metric: str) -> list[Tried]:
    """Every method's tuning trials, diverged ones with an infinite loss; seeds of one trial are averaged."""
    runs = experiment.runs
    runs = runs[(runs["role"] == "tune") & runs["status"].isin(["ok", "diverged"])]
    found = []
    for method in sorted(runs["method"].unique(), key=method_order):
        own = runs[runs["method"] == method]
        loss = final(own, metric).where(own["status"] == "ok", math.inf).fillna(math.inf)
        table = pd.DataFrame({"trial": own["trial"], "lr": own["lr"], "loss": loss, "config": own["config"]})
        options = [_numbers(config["method"].get("clipper") or {}) for config in table["config"]]
        options = [given | _numbers(config["method"].get("estimator") or {}) for given, config in
                   zip(options, table["config"], strict=True)]  # fmt: skip
        varied = _varied(options)
        table["value"] = [given.get(varied, math.nan) if varied else math.nan for given in options]
        means = table.groupby("trial").agg({"lr": "first", "loss": "mean", "value": "first"})
        found.append(Tried(str(method), *(means["lr"].to_numpy(float), varied), means["value"].to_numpy(float),
                           means["loss"].to_numpy(float)))  # fmt: skip
    return found


def _numbers(node: Mapping[str, Any], path: str = "") -> dict[str, float]:
    """Every number below a node, by its last name."""
    found: dict[str, float] = {}
    for key, value in node.items():
        if isinstance(value, Mapping):
            found |= _numbers(value, str(key))
        elif isinstance(value, int | float) and not isinstance(value, bool):
            found[str(key)] = float(value)
    return found


def _varied(options: list[dict[str, float]]) -> str | None:
    """The option that takes most values over the trials, None where all stand still."""
    names = dict.fromkeys(name for given in options for name in given)
    counts = {name: len({given[name] for given in options if name in given}) for name in names}
    best = max(counts, key=lambda name: counts[name], default=None)
    return best if best is not None and counts[best] > 2 else None


def _budget(found: list[Tried], metric: str) -> Figure:
    figure, axes = grid(1, 1, 3.4)
    axis = axes[0][0]
    styles = dict(zip([one.method for one in found], looks([one.method for one in found]), strict=True))
    worst = max(float(one.loss[np.isfinite(one.loss)].max()) for one in found if np.isfinite(one.loss).any())
    for one in found:
        if not np.isfinite(one.loss).any():
            styles[f"{one.method} (every trial diverged)"] = styles.pop(one.method)
            continue
        capped = np.where(np.isfinite(one.loss), one.loss, worst)  # a diverged trial is worth the worst that ended
        counts = [count for count in (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 100, 200, 300) if count <= len(capped)]
        curve = pd.Series([expected_best(capped, count) for count in counts], index=counts)
        draw_line(axis, curve, styles[one.method], None)
    axis.set_xscale("log", base=2)
    axis.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axis.set_yscale("log")
    label(axes, "random trials", f"expected best {metric.replace('_', ' ')}")
    legend(figure, styles, None)
    return figure


def _map(found: list[Tried], metric: str) -> Figure:
    """One panel a method: each trial at its learning rate and threshold, coloured by its loss; a cross: it diverged."""
    columns = min(COLUMNS, len(found))
    rows = math.ceil(len(found) / columns)
    figure = Figure(figsize=(7.0, 0.5 + 2.1 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    axes = [list(row) for row in figure.subplots(rows, columns, squeeze=False)]
    finite = np.concatenate([one.loss[np.isfinite(one.loss)] for one in found])
    low, high = float(finite.min()), float(np.quantile(finite, 0.9))
    norm = LogNorm(low, max(high, low * 1.01)) if low > 0 else Normalize(low, max(high, low + 1e-9))
    painted = None
    for place, one in enumerate(found):
        axis = axes[place // columns][place % columns]
        good = np.isfinite(one.loss)
        painted = axis.scatter(one.lr[good], one.values[good], c=one.loss[good], norm=norm, cmap="viridis", s=16)
        axis.plot(one.lr[~good], one.values[~good], linestyle="none", marker="x", color="#777777", markersize=4)
        if good.any():
            best = int(one.loss.argmin())
            axis.plot(one.lr[best], one.values[best], marker="o", markersize=9, markerfacecolor="none", color="#D55E00")
        axis.set_xscale("log")
        positive = one.values[np.isfinite(one.values)]
        if len(positive) and positive.min() > 0 and positive.max() > 20 * positive.min():
            axis.set_yscale("log")
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.set_title(one.method.replace("_", " "))
        axis.set_ylabel(str(one.option).replace("_", " "))
        axis.set_xlabel("learning rate")
    hide_empty(axes)
    if painted is not None:
        figure.colorbar(painted, ax=[axis for row in axes for axis in row], label=metric.replace("_", " "), aspect=30)
    return figure
