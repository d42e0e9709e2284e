"""Tables and figure of the per-sample engines, from the frame that `clipbench.bench.per_sample` measures."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import matplotlib
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from clipbench.analysis.plots import save
from clipbench.analysis.style import COLOURS, RC
from clipbench.bench.peers import LABELS
from clipbench.bench.problems import HEADS, LAYERS, WIDTH, parse
from clipbench.runs.files import atomic_text
from clipbench.wording import amount

LOOKS = {
    "clipbench": ("vermillion", "o"),
    "opacus_ghost": ("blue", "s"),
    "opacus_hooks": ("green", "^"),
    "vmap": ("purple", "D"),
}
TICKS = (1, 2, 3, 5, 10, 20, 30, 50, 100, 200, 300, 500, 1000)
Row = Any  # a row of `itertuples`


def title(model: str) -> str:
    """The problem in words."""
    kind, size = parse(model)
    words = {
        "mlp": f"MLP, width {size}",
        "transformer": f"Transformer, context {size}",
        "alexnet": "AlexNet",
        "alexnet_fc": "AlexNet with FC layers",
    }
    return words[kind]


def in_order(frame: pd.DataFrame) -> pd.DataFrame:
    """Rows by kind of model, size and batch, in whatever order they were measured."""
    place = frame["model"].map(parse)
    return frame.assign(place=place).sort_values(["place", "batch"], kind="stable").drop(columns="place")


def tables(frame: pd.DataFrame, results: Path, name: str) -> None:
    """results/tables/<name>.md (time), <name>__memory.md and <name>__error.md: one column an engine."""
    if frame.empty:
        return
    frame = in_order(frame)
    first = frame.iloc[0]
    machine = f"{first['device']}, {amount(first['threads'], 'thread')}, torch {first['torch']}"
    problems = f"Transformer: {LAYERS} layers, width {WIDTH}, {HEADS} heads. MLP: four hidden layers."
    found = {
        "": [
            "**Per-sample gradient clipping: time** of the whole optimizer step (forward, backward, clipping, SGD with "
            "momentum) over that of plain SGD: ratio of medians with 95 % interval, n rounds interleaved in one "
            f"process ({machine}). {problems}",
            "",
            *_table(frame, _time, "plain SGD, ms", lambda row: f"{1e3 * row.step_seconds:.3g}"),
        ],
        "__memory": [
            "**Per-sample gradient clipping: peak memory** over plain SGD's: resident size of a fresh process at its "
            f"peak, less that before its first step ({machine}). {problems}",
            "",
            *_table(frame, _memory, "plain SGD, MiB", lambda row: f"{row.bytes / 2**20:.0f}"),
        ],
        "__error": [
            "**Per-sample gradient clipping: largest error** of the gradient over its largest entry, against float64 "
            "autograd on one sample at a time (batch 8, half of it clipped, no dropout); plain SGD against its own "
            "float64 gradient.",
            "",
            *_table(frame, _error, "plain SGD", _error, batches=False),
        ],
    }
    (results / "tables").mkdir(parents=True, exist_ok=True)
    for part, lines in found.items():
        atomic_text(results / "tables" / f"{name}{part}.md", "\n".join(lines) + "\n")


def _table(
    frame: pd.DataFrame, write: Callable[[Row], str], base: str, write_base: Callable[[Row], str], batches: bool = True
) -> list[str]:
    """Rows are models and batches (or models alone), columns engines."""
    engines = [engine for engine in LABELS if engine != "sgd" and engine in set(frame["engine"])]
    keys = ["model", "batch"] if batches else ["model"]
    head = [*keys, base, *(LABELS[engine] for engine in engines)]
    lines = [f"| {' | '.join(head)} |", f"| --- | {'---: | ' * (len(head) - 1)}".rstrip()]
    for key, cell in frame.groupby(keys, sort=False):
        rows = {row.engine: row for row in cell.itertuples()}
        words = [title(str(key[0])), *map(str, key[1:])]
        words += [write_base(rows["sgd"]) if "sgd" in rows else "–"]
        words += [write(rows[engine]) if engine in rows else "–" for engine in engines]
        lines.append(f"| {' | '.join(words)} |")
    return lines


def _time(row: Row) -> str:
    if row.status != "ok":
        return str(row.status)
    part = f", {row.chunk:.0f} samples at a time" if row.chunk else ""
    return f"{row.ratio:.2f} [{row.low:.2f}, {row.high:.2f}] (n = {row.n:.0f}{part})"


def _memory(row: Row) -> str:
    if pd.isna(row.memory_ratio):
        return "–" if row.status == "ok" else str(row.status)
    return f"{row.memory_ratio:.2f}"


def _error(row: Row) -> str:
    return "–" if pd.isna(row.error) else f"{row.error:.1e}"


def figure(frame: pd.DataFrame, results: Path, name: str) -> list[Path]:
    """results/figures/<name>.{png,svg}: one panel a model, batch sizes along it, time over plain SGD's (log)."""
    models = list(dict.fromkeys(in_order(frame)["model"]))
    engines = [engine for engine in LOOKS if engine in set(frame["engine"])]
    with matplotlib.rc_context(RC):
        drawn = Figure(figsize=(1.5 + 1.65 * len(models), 3.3), layout="constrained")
        panels = drawn.subplots(1, len(models), sharey=True, squeeze=False)[0]
        top = max(2.0, 1.6 * frame["high"].max()) if frame["high"].notna().any() else 2.0
        for panel, model in zip(panels, models, strict=True):
            _panel(panel, frame[frame["model"] == model], engines, top)
            panel.set_title(title(model))
        panels[0].set_ylabel("time of a step / plain SGD's")
        drawn.supxlabel("batch size", fontsize=RC["axes.labelsize"])
        handles = [_handle(LABELS[engine], *LOOKS[engine]) for engine in engines]
        if (frame["status"] != "ok").any():
            handles.append(_handle("does not fit in memory or time", "black", "x"))
        drawn.legend(handles=handles, loc="outside upper center", ncols=len(handles), handletextpad=0.2)
    return save(drawn, results, name)


def _panel(panel: Axes, frame: pd.DataFrame, engines: list[str], top: float) -> None:
    batches = sorted(set(frame["batch"]))
    panel.axhline(1.0, color="black", linewidth=0.8)
    for place, engine in enumerate(engines):
        colour, marker = COLOURS[LOOKS[engine][0]], LOOKS[engine][1]
        rows: Iterable[Row] = frame[frame["engine"] == engine].itertuples()
        for row in rows:
            x = batches.index(row.batch) + 0.17 * (place - (len(engines) - 1) / 2)
            if pd.isna(row.ratio):
                panel.plot(x, top * 0.86, marker="x", color=colour, markersize=5, markeredgewidth=1.6)
                continue
            spread = [[row.ratio - row.low], [row.high - row.ratio]]
            panel.errorbar(x, row.ratio, spread, fmt=marker, color=colour, elinewidth=1)
            digits = 2 if row.ratio < 2.995 else 1 if row.ratio < 9.95 else 0
            panel.annotate(f"{row.ratio:.{digits}f}", (x, row.high), (0, 4), textcoords="offset points", ha="center",
                           fontsize=6.5, color=colour)  # fmt: skip
    panel.set_yscale("log")
    panel.set_ylim(min(0.9, 0.95 * frame["low"].min()), top)
    panel.set_xlim(-0.5, len(batches) - 0.5)
    panel.set_xticks(range(len(batches)), [str(batch) for batch in batches])
    panel.yaxis.set_major_locator(FixedLocator(TICKS))
    panel.yaxis.set_minor_locator(NullLocator())
    panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g} ×"))
    panel.grid(visible=False, axis="x")


def _handle(label: str, colour: str, marker: str) -> Line2D:
    return Line2D([], [], color=COLOURS[colour], marker=marker, linestyle="none", label=label, markeredgewidth=1.2)
