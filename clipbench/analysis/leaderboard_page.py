"""The leaderboard as a table and a figure: results/tables/leaderboard.md and results/figures/leaderboard.png."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from clipbench.analysis import plots
from clipbench.analysis.aggregate import profile
from clipbench.analysis.document import write_text
from clipbench.analysis.groups import BASELINE
from clipbench.analysis.leaderboard import Board, Ranked, boards
from clipbench.analysis.stats import Interval
from clipbench.analysis.style import COLOURS, RC, looks
from clipbench.analysis.tables import NONE, Table, number
from clipbench.wording import amount

NAME = "leaderboard"
SHOWN = 5  # profiles beside SGD's
HIGHEST = 2.0  # of the profiles' axis
COLUMNS = ["method", "error / SGD's, IQM", "P(better than SGD)", "p (Holm)", "diverged", "learned nothing",
           "clipped", "trials near best", "steps to target / SGD's", "step time / SGD's"]  # fmt: skip
ALPHA = 0.05


def write(results: Path, size: str = "cpu") -> list[Path]:
    """Table and figure of every board, the first called `leaderboard`; nothing where no task has finished runs."""
    written = []
    for slug, board in named(boards(results, size)):
        written.append(write_text(results / "tables" / f"{slug}.md", table(board).markdown()))
        written += plots.save(figure(board), results, slug)
    return written


def named(found: Sequence[Board]) -> list[tuple[str, Board]]:
    """Each board with the name of its files."""
    return [(NAME if index == 0 else f"{NAME}_all_tasks", board) for index, board in enumerate(found)]


def section(results: Path, size: str = "cpu") -> list[str]:
    """The report's lines on the leaderboard, none where it was not run."""
    lines = []
    for slug, board in named(boards(results, size)):
        text = table(board).markdown().splitlines()
        lines += [f"### {text[0].removeprefix('### ')}", *text[1:], "",
                  f"![The methods of the leaderboard by their errors]({Path('figures') / slug}.png)", ""]  # fmt: skip
    return ["## Leaderboard", "", *lines] if lines else []


def table(board: Board) -> Table:
    """One row a method, best first."""
    rows = [[
        place.method + (" (= sgd)" if place.same_as_baseline == len(board.tasks) and place.method != BASELINE else ""),
        bracketed(place.error), bracketed(place.better), _p(place), _share(place.diverged), _share(place.dead),
        _share(place.clipped), _share(place.near_best), _ratio(place.steps), _ratio(place.seconds),
    ] for place in board.places]  # fmt: skip
    runs = board.places[0].error.n if board.places else 0
    notes = [
        f"Final runs of tuned settings on {', '.join(board.tasks)}; {amount(runs, 'run')} a method. "
        "A run's error is its test loss, or 1 − test accuracy, over SGD's (IQM) on that task; a run that "
        "diverged or learned nothing (its loss ended at 0.95 of the best constant's or above) has the best constant's.",
        "IQM: mean of the middle half over runs and tasks. Intervals: 95 %, of a method's own runs, seeds resampled "
        "within tasks. p: Wilcoxon on pairs of the same seed, which can tell methods whose intervals overlap; "
        f"corrected over all methods; * below {ALPHA}.",
        "clipped: share of samples, steps, layers, units or entries; a tuned method that clips under 1 % of samples, "
        "steps or layers is SGD (= sgd where on every task). trials near best: within 10 % of the method's best "
        "validation loss. Steps: geometric mean of restricted means. Step time: calibrated, – where it was not "
        "measured.",
    ]
    if board.left_out:
        notes.append(f"Left out, as they were not tuned and run as SGD was: {', '.join(board.left_out)}.")
    sizes = f"{amount(len(board.places), 'method')}, {amount(len(board.tasks), 'task')}"
    return Table(f"Leaderboard: {sizes}", COLUMNS, rows, notes)


def bracketed(interval: Interval) -> str:
    """ "0.93 [0.90, 0.97]"."""
    half = (interval.high - interval.low) / 2
    return f"{number(interval.estimate, half)} [{number(interval.low, half)}, {number(interval.high, half)}]"


def _p(place: Ranked) -> str:
    if not math.isfinite(place.p):
        return NONE
    return ("< 0.001" if place.p < 0.001 else f"{place.p:.3f}") + (" *" if place.p < ALPHA else "")


def _share(value: float) -> str:
    return f"{100 * value:.3g} %" if math.isfinite(value) else NONE


def _ratio(value: float) -> str:
    return f"{value:.2f}" if math.isfinite(value) else NONE


def figure(board: Board) -> Figure:
    """Left: every method's interquartile mean with its interval. Right: performance profiles of the best and SGD's."""
    with matplotlib.rc_context(RC):
        drawn = Figure(figsize=(7.0, max(2.6, 0.6 + 0.17 * len(board.places))), layout="constrained")
        FigureCanvasAgg(drawn)
        left, right = drawn.subplots(1, 2, width_ratios=[1.0, 1.1])
        _errors(left, board)
        _profiles(right, board)
    return drawn


def _errors(axis: Axes, board: Board) -> None:
    for row, place in enumerate(reversed(board.places)):
        low, high = place.error.low, place.error.high
        shown = place.p < ALPHA
        colour = "#777777" if not shown else COLOURS["green"] if place.error.estimate < 1 else COLOURS["vermillion"]
        colour = "#000000" if place.method == BASELINE else colour
        axis.plot([low, high], [row, row], color=colour, linewidth=1.2)
        axis.plot(place.error.estimate, row, color=colour, marker="o", markersize=3.5)
    axis.axvline(1.0, color="#444444", linewidth=0.8)
    axis.set_yticks(range(len(board.places)), [place.method for place in reversed(board.places)], fontsize=6.5)
    axis.set_ylim(-0.7, len(board.places) - 0.3)
    highest = max(place.error.high for place in board.places)
    if highest > 4:  # one that never works must not press the others into a line
        axis.set_xscale("log")
    axis.set_xlabel("test error / SGD's (interquartile mean)")


def _profiles(axis: Axes, board: Board) -> None:
    best = [place for place in board.places if place.method != BASELINE][:SHOWN]
    base = [place for place in board.places if place.method == BASELINE]
    shown = [*base, *best]
    lowest = min(float(group.min()) for place in shown for group in place.ratios)
    limits = np.linspace(0.95 * lowest, HIGHEST, 301)
    for place, look in zip(shown, looks([place.method for place in shown]), strict=True):
        axis.plot(limits, profile(place.ratios, limits), color=look.colour, linestyle=look.dash, label=place.method)
    axis.set_ylim(0, 1.02)
    axis.set_xlabel("test error / SGD's, at most")
    axis.set_ylabel("share of runs")
    axis.legend(loc="lower right", fontsize=6.5)
