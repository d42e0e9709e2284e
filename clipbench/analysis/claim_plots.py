"""The figure of a claim: each statement's effect with its interval, by its distance from the bound, and its state."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from clipbench.analysis.claims.judged import JudgedClaim
from clipbench.analysis.claims.statement import Statement
from clipbench.analysis.style import COLOURS, RC

STATES = {"shown": (COLOURS["green"], "o"), "refuted": (COLOURS["vermillion"], "X"), "open": ("#777777", "D")}
WIDTH = 7.0  # inches, of a page's text
MOST_ROWS = 40  # of the statements beside the verdict, those nearest to their bound
ROW = 0.17  # inches
MOST_LETTERS = 90  # of a statement on one line; a longer one is broken into lines of
LETTERS = 64
# What a panel's axis says, by the unit of its statements.
AXES = {
    "accuracy": "points of accuracy on the claimed side",
    "log": "ratio to the bound, above 1 on the claimed side",
    "share": "share of layers on the claimed side of one half",
    "×": "ratio on the claimed side",
}
SIZE = 6.5  # of the statements' text


def claim_figure(judged: JudgedClaim) -> Figure | None:
    """Effects minus their bounds, turned so that the claimed side is right of 0; None where there are none.

    One panel a unit. Filled marks are required by the rule, hollow ones stand beside it.
    """
    panels: dict[str, list[Statement]] = {}
    for statement in _chosen(judged.decision.statements):
        panels.setdefault(statement.unit, []).append(statement)
    if not panels:
        return None
    rows = [len(statements) * _lines(statements) for statements in panels.values()]
    with matplotlib.rc_context(RC):
        figure = Figure(figsize=(WIDTH, 0.5 + sum(0.6 + ROW * count for count in rows)), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots(len(panels), 1, squeeze=False, height_ratios=[count + 2 for count in rows])
        for axis, (unit, statements) in zip(axes[:, 0], panels.items(), strict=True):
            _panel(axis, unit, statements)
        states = {statement.state for statements in panels.values() for statement in statements}
        handles = [_mark(name, True) for name in STATES if name in states]
        if any(not statement.required for statements in panels.values() for statement in statements):
            handles.append(Line2D([], [], color="#777777", marker="o", linestyle="none", markerfacecolor="white",
                                  label="beside the verdict"))  # fmt: skip
        figure.legend(handles=handles, loc="outside upper right", ncols=len(handles))
    return figure


def _chosen(statements: Sequence[Statement]) -> list[Statement]:
    """Those with an effect: all required ones, and beside them the ones nearest to their bound."""
    known = [one for one in statements if one.identical or math.isfinite(one.effect.estimate)]
    required = sorted((one for one in known if one.required), key=lambda one: one.text)
    beside = sorted((one for one in known if not one.required), key=lambda one: abs(one.effect.estimate - one.bound))
    return required + beside[: max(0, MOST_ROWS - len(required))]


def _panel(axis: Axes, unit: str, statements: Sequence[Statement]) -> None:
    scale, zero = 100.0 if unit == "accuracy" else 1.0, 1.0 if unit == "log" else 0.0
    for place, one in enumerate(statements):
        colour, marker = STATES[one.state]
        y, face = len(statements) - 1 - place, colour if one.required else "white"
        points = [zero] * 3 if one.identical else [_turned(one, value) * scale for value in one.effect[:3]]
        if all(map(math.isfinite, points)):
            axis.plot(points[1:], [y, y], color=colour, linewidth=1.2)
        axis.plot(points[0], y, color=colour, marker=marker, markerfacecolor=face, linestyle="none", markersize=4.5)
    axis.axvline(zero, color="#444444", linewidth=0.8)
    _margin(axis, statements, scale)
    axis.set_yticks(range(len(statements)), [_words(one) for one in reversed(statements)], fontsize=SIZE)
    axis.set_ylim(-0.7, len(statements) - 0.3)
    axis.set_xlabel(AXES.get(unit, "distance from the bound, on the claimed side"))
    if unit == "log":
        axis.set_xscale("log")
        axis.xaxis.set_minor_formatter(NullFormatter())
    low, high = axis.get_xlim()
    subs = (1, 2, 5) if high < 1000 * low else (1,)
    axis.xaxis.set_major_locator(LogLocator(subs=subs) if unit == "log" and high > 4 * low else MaxNLocator(5))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}".replace("-", "−")))


def _margin(axis: Axes, statements: Sequence[Statement], scale: float) -> None:
    """The margin within which an effect counts as none, where all statements of the panel share it."""
    margins = {one.margin for one in statements}
    margin = margins.pop() if len(margins) == 1 else None
    if margin is not None:
        log = statements[0].unit == "log"
        low, high = (math.exp(-margin), math.exp(margin)) if log else (-margin * scale, margin * scale)
        axis.axvspan(low, high, color="#777777", alpha=0.12, linewidth=0)


def _turned(statement: Statement, value: float) -> float:
    """The effect's distance from its bound, positive on the claimed side; of a log ratio, the ratio."""
    distance = (value - statement.bound) * (1 if statement.side == "above" else -1)
    return math.exp(distance) if statement.unit == "log" else distance


def _words(statement: Statement) -> str:
    text = statement.text.replace("_", " ")
    return text if len(text) <= MOST_LETTERS else textwrap.fill(text, LETTERS)


def _lines(statements: Sequence[Statement]) -> int:
    """Of the longest of them."""
    return max(_words(one).count("\n") + 1 for one in statements)


def _mark(state: str, required: bool) -> Line2D:
    colour, marker = STATES[state]
    options: dict[str, Any] = {"color": colour, "marker": marker, "linestyle": "none"}
    return Line2D([], [], markerfacecolor=colour if required else "white", label=state, **options)
