"""Table and figure of the engine on models that others wrote, from the frame that `clipbench.bench.models` measures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from clipbench.analysis.plots import save
from clipbench.analysis.style import COLOURS, RC
from clipbench.bench.models_zoo import Entry, zoo
from clipbench.bench.peers import LABELS
from clipbench.runs.files import atomic_text
from clipbench.wording import amount

LOOKS = {"clipbench": ("vermillion", "o"), "opacus_hooks": ("green", "^"), "vmap": ("purple", "D")}
TICKS = (1, 1.5, 2, 3, 5, 10, 20, 50, 100)
Row = Any  # a row of `itertuples`


def describe(rows: pd.DataFrame) -> str:
    """One model in a line."""
    by = {row.engine: row for row in rows.itertuples()}
    ours: Row = by["clipbench"]
    words = [f"{ours.model}: " + _exact(ours)]
    if _slow(ours):
        words.append(f"slow: {', '.join(_slow(ours))}")
    words += [f"{LABELS[engine]} {_time(row)}" for engine, row in by.items() if engine != "sgd"]
    return "; ".join(words)


def tables(frame: pd.DataFrame, results: Path, name: str) -> None:
    """results/tables/<name>.md: one row a model; below it the slow paths with their reasons."""
    if frame.empty:
        return
    models, entries = in_order(frame), zoo()
    first = frame.iloc[0]
    head = ["family", "model", "parameters", "norms, gradient", "slow path", "time", "memory", *_peers(frame)]
    lines = [
        "**The per-sample engine on models that others wrote** (random weights, small size): largest error of norms "
        "and clipped gradient at 2, 3, 4, 5 and 9 samples in float64 against autograd on one loss at a time; time of "
        "an optimizer step at 16 samples over plain SGD's, ratio of medians with 95 % interval; peak memory over plain "
        f"SGD's ({first['device']}, {amount(first['threads'], 'thread')}, torch {first['torch']}).",
        "",
        f"| {' | '.join(head)} |",
        f"| --- | --- | {'---: | ' * (len(head) - 2)}".rstrip(),
    ]
    reasons = []
    for model in models:
        by: dict[str, Row] = {row.engine: row for row in frame[frame["model"] == model].itertuples()}
        ours, entry = by["clipbench"], entries[model]
        slow = _slow(ours)
        title = f"{entry.title} ({entry.note})" if entry.note else entry.title
        size = "–" if pd.isna(ours.parameters) else f"{ours.parameters / 1e6:.2f} M"
        memory = "–" if pd.isna(ours.memory_ratio) else f"{ours.memory_ratio:.2f}"
        cells = [entry.family, title, size, _exact(ours), str(len(slow)) if slow else "none", _time(ours), memory]
        cells += [_time(by[engine]) if engine in by else "–" for engine in LABELS if LABELS[engine] in _peers(frame)]
        lines.append(f"| {' | '.join(cells)} |")
        reasons += [f"- {entry.title}: `{parameter}`, {why or 'no rule'}" for parameter, why in slow.items()]
    if reasons:
        lines += ["", "Parameters on the slow path (one backward pass a sample):", "", *reasons]
    (results / "tables").mkdir(parents=True, exist_ok=True)
    atomic_text(results / "tables" / f"{name}.md", "\n".join(lines) + "\n")


def in_order(frame: pd.DataFrame) -> list[str]:
    """The frame's models, family by family."""
    entries, present = zoo(), set(frame["model"])
    families = list(dict.fromkeys(entry.family for entry in entries.values()))
    return sorted((name for name in entries if name in present), key=lambda name: families.index(entries[name].family))


def _peers(frame: pd.DataFrame) -> list[str]:
    present = set(frame["engine"])
    return [label for engine, label in LABELS.items() if engine in present - {"sgd", "clipbench"}]


def _slow(row: Row) -> dict[str, str]:
    return dict(json.loads(row.slow)) if isinstance(row.slow, str) else {}


def _exact(row: Row) -> str:
    if isinstance(row.complaint, str):
        return row.complaint.replace("|", "/")
    return f"{row.norm_error:.0e}, {row.gradient_error:.0e}"


def _time(row: Row) -> str:
    if row.status != "ok":
        return "failed" if str(row.status).startswith("failed") else str(row.status)
    return f"{row.ratio:.2f} [{row.low:.2f}, {row.high:.2f}]"


def figure(frame: pd.DataFrame, results: Path, name: str) -> list[Path]:
    """results/figures/<name>.{png,svg}: one line a model, grouped by family; time over plain SGD's, and the error."""
    models, entries = in_order(frame), zoo()
    half = _split([entries[model].family for model in models])
    columns = [part for part in (models[:half], models[half:]) if part]
    rows = max(len(part) + len({entries[model].family for model in part}) for part in columns)
    engines = [engine for engine in LOOKS if engine in set(frame["engine"])]
    with matplotlib.rc_context(RC):
        drawn = Figure(figsize=(5.2 * len(columns), 1.2 + 0.155 * rows), layout="constrained")
        panels = drawn.subplots(1, 2 * len(columns), width_ratios=[3.2, 1] * len(columns), squeeze=False)[0]
        top = 1.5 * np.nanmax([2.0, *frame["high"].dropna()])
        for place, part in enumerate(columns):
            lines = _lines(part, entries)
            _times(panels[2 * place], frame, lines, engines, top)
            _errors(panels[2 * place + 1], frame, lines)
            for panel in panels[2 * place : 2 * place + 2]:
                panel.set_ylim(rows - 0.4, -0.6)
                panel.tick_params(axis="y", length=0)
            _names(panels[2 * place], lines, entries)
        handles = [
            Line2D([], [], color=COLOURS[colour], marker=marker, linestyle="none", label=LABELS[engine], markersize=4.5)
            for engine, (colour, marker) in LOOKS.items() if engine in engines
        ]  # fmt: skip
        drawn.legend(handles=handles, loc="outside upper center", ncols=len(handles), handletextpad=0.2)
    return save(drawn, results, name)


def _split(families: list[str]) -> int:
    """Where the second column begins: at the family boundary nearest to the middle."""
    if len(families) < 24:
        return len(families)
    edges = [k for k in range(1, len(families)) if families[k] != families[k - 1]]
    return min(edges, key=lambda k: abs(2 * k - len(families)), default=len(families))


def _lines(models: list[str], entries: dict[str, Entry]) -> dict[str, int]:
    """The line of each model; a line for its family stands above the first of them."""
    lines: dict[str, int] = {}
    line, family = -1, None
    for model in models:
        line += 1 if entries[model].family == family else 2
        family = entries[model].family
        lines[model] = line
    return lines


def _names(panel: Axes, lines: dict[str, int], entries: dict[str, Entry]) -> None:
    """Models beside their lines, families above them."""
    panel.set_yticks(list(lines.values()), [entries[model].title for model in lines], fontsize=6.5)
    seen: set[str] = set()
    for model, line in lines.items():
        family = entries[model].family
        if family not in seen:
            seen.add(family)
            panel.annotate(
                family, (0, line - 1), (-4, 0), xycoords=("axes fraction", "data"), textcoords="offset points",
                ha="right", va="center", fontsize=6.5, fontweight="bold", annotation_clip=False,
            )  # fmt: skip


def _times(panel: Axes, frame: pd.DataFrame, lines: dict[str, int], engines: list[str], top: float) -> None:
    for edge, look in ((1.0, "-"), (1.6, ":")):
        panel.axvline(edge, color="black", linewidth=0.8, linestyle=look)
    for engine in reversed(engines):
        colour, marker = COLOURS[LOOKS[engine][0]], LOOKS[engine][1]
        for row in frame[(frame["engine"] == engine) & frame["model"].isin(lines)].itertuples():
            line = lines[str(row.model)]
            if pd.isna(row.ratio):
                continue
            spread = [[row.ratio - row.low], [row.high - row.ratio]]
            panel.errorbar(row.ratio, line, xerr=spread, fmt=marker, color=colour, elinewidth=0.9, markersize=3.6)
            if engine == "clipbench" and _slow(row):
                panel.annotate("slow path", (row.high, line), (3, 0), textcoords="offset points", va="center",
                               fontsize=5.5, color=colour)  # fmt: skip
    panel.set_xscale("log")
    panel.set_xlim(0.85, top)
    panel.xaxis.set_major_locator(FixedLocator([tick for tick in TICKS if tick < top]))
    panel.xaxis.set_minor_locator(NullLocator())
    panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    panel.set_xlabel("time of a step / plain SGD's")


def _errors(panel: Axes, frame: pd.DataFrame, lines: dict[str, int]) -> None:
    ours = frame[(frame["engine"] == "clipbench") & frame["model"].isin(lines)]
    for row in ours.itertuples():
        line = lines[str(row.model)]
        if isinstance(row.complaint, str):
            panel.plot(1e-2, line, marker="x", color="black", markersize=4)
            continue
        for value, shape in ((row.norm_error, "o"), (row.gradient_error, "|")):
            panel.plot(max(value, 1e-17), line, marker=shape, color=COLOURS["blue"], markersize=3.2, linestyle="none")
    panel.set_xscale("log")
    panel.set_xlim(1e-17, 1e-1)
    panel.xaxis.set_major_locator(FixedLocator([1e-15, 1e-9, 1e-3]))
    panel.xaxis.set_minor_locator(NullLocator())
    panel.set_yticks(list(lines.values()), [])
    panel.set_xlabel("error (● norms)")
