"""Tables and figure of the spectral kernels, from the frame that `clipbench.bench.spectral` measures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from clipbench.analysis.plots import save
from clipbench.analysis.style import COLOURS, RC
from clipbench.bench.spectral_cases import SHAPES
from clipbench.runs.files import atomic_text
from clipbench.wording import amount

LOOKS = {
    "exact": ("vermillion", "o"),
    "newton_schulz": ("green", "^"),
    "svd_lowrank": ("blue", "s"),
    "randomized": ("purple", "D"),
    "randomized, warm": ("sky", "v"),
}
FAR = 1e4  # σ_max/τ beyond which the table in short does not look
PRECISE = 1e-5  # an error above it makes a marker hollow
FEW = 0.055  # a share of the values: 5 %, and the rounding of their number
Row = Any  # a row of `itertuples`


def in_order(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows in the order of SHAPES, in whatever order they were measured; whole steps last."""
    shapes = [f"{rows}x{columns}" for family in SHAPES.values() for rows, columns in family]
    return frame.sort_values(
        "problem",
        kind="stable",
        key=lambda names: names.map(lambda name: shapes.index(name) if name in shapes else len(shapes)),
    )


def tables(frame: pd.DataFrame, results: Path, name: str) -> None:
    """results/tables/<name>.md: whole steps; <name>__kernels.md: the kernels, one column a method; <name>__shapes.md:
    the same in short, one row a shape.
    """
    if frame.empty:
        return
    frame = in_order(frame)
    first = frame.iloc[0]
    machine = f"{first['device']}, {amount(first['threads'], 'thread')}, torch {first['torch']}"
    steps, kernels = (frame[frame["kind"] == kind] for kind in ("step", "kernel"))
    (results / "tables").mkdir(parents=True, exist_ok=True)
    written = ((steps, "", _steps), (kernels, "__kernels", _kernels), (kernels, "__shapes", _shapes))
    for part, suffix, write in written:
        if len(part):
            atomic_text(results / "tables" / f"{name}{suffix}.md", "\n".join(write(part, machine)) + "\n")


def _steps(frame: pd.DataFrame, machine: str) -> list[str]:
    lines = [
        "**Spectral clipping: time** of the whole training step (batch, forward, backward, clipping, SGD with "
        "momentum) over that of plain SGD: ratio of medians with 95 % interval, rounds interleaved in one process, "
        f"weights and thresholds of a short run ({machine}).",
        "",
        "| model | method | step, ms | × SGD | rounds |",
        "| --- | --- | ---: | ---: | ---: |",
    ]
    for row in frame.itertuples():
        spread = f"{row.estimate:.3f} [{row.low:.3f}, {row.high:.3f}]"
        lines.append(f"| {row.problem} ({row.source}) | {row.method} | {1e3 * row.seconds:.1f} | {spread} | {row.n} |")
    return lines


def _kernels(frame: pd.DataFrame, machine: str) -> list[str]:
    sources = ", ".join(sorted(set(frame["source"])))
    columns = [method for method in LOOKS if method in set(frame["method"])]
    head = ["shape", "spectrum", "τ", "above τ", "σ_max/τ", "svd, ms", *columns]
    lines = [
        "**Spectral clipping: kernels.** How many times faster than torch.linalg.svd in float32 (ratio of medians, "
        "interleaved rounds), and the error ‖C − C*‖_F / ‖C*‖_F against a float64 SVD. `svd_lowrank` has the paper's "
        "rank 10, oversampling 5, one power iteration; truncated methods are shown for at most 10 values above τ. Real "
        f"gradients: {sources} ({machine}).",
        "",
        f"| {' | '.join(head)} |",
        "| --- | --- | --- | " + "---: | " * (len(head) - 4) + "---: |",
    ]
    for _, cell in frame.groupby(["problem", "spectrum", "level"], sort=False):
        rows = {row.method: row for row in cell.itertuples()}
        base = rows["svd"]
        words = [base.problem.replace("x", " × "), base.spectrum, base.level, str(int(base.above))]
        words += [f"{base.sigma_over_tau:.3g}", f"{1e3 * base.seconds:.3g}"]
        words += [_cell(rows.get(method)) for method in columns]
        lines.append(f"| {' | '.join(words)} |")
    return lines


def _shapes(frame: pd.DataFrame, machine: str) -> list[str]:
    lines = [
        "**Spectral clipping: kernels in short.** `exact`: how many times faster than torch.linalg.svd in float32, "
        "over the three spectra. `randomized`, warm: its time over that of torch.svd_lowrank with the paper's setting, "
        "at most 10 values above τ; where the spectrum is flat around τ it answers by `exact`. Smallest to largest; "
        f"σ_max/τ up to {FAR:.0e}; errors are the largest, against a float64 SVD ({machine}).",
        "",
        "| shape | svd, ms | exact: τ ≥ σ_max/1.25 | exact: ≤ 5 % above, σ_max/τ ≤ 30 | exact: else | error "
        "| randomized | error | svd_lowrank: error |",
        "| --- |" + " ---: |" * 8,
    ]
    frame = frame[frame["sigma_over_tau"] <= 1.01 * FAR]
    for shape, part in frame.groupby("problem", sort=False):
        rows = {method: group.set_index(["spectrum", "level"]) for method, group in part.groupby("method")}
        exact, share = rows["exact"], rows["exact"]["above"] / min(map(int, str(shape).split("x")))
        near = exact["sigma_over_tau"] < 1.3
        few = ~near & (share <= FEW) & (exact["sigma_over_tau"] < 30.1)
        words = [str(shape).replace("x", " × "), f"{1e3 * rows['svd']['seconds'].median():.3g}"]
        words += [_range(1 / exact.loc[chosen, "estimate"]) for chosen in (near, few, ~near & ~few)]
        words.append(f"{exact['error'].max():.0e}")
        truncated, adaptive = rows["svd_lowrank"], rows["randomized, warm"]
        words += [_range(adaptive["seconds"] / truncated["seconds"], digits=2)]
        words += [f"{method['error'].max():.0e}" for method in (adaptive, truncated)]
        lines.append(f"| {' | '.join(words)} |")
    return lines


def _range(values: pd.Series, digits: int = 1) -> str:
    if values.empty:
        return "–"
    low, high = f"{values.min():.{digits}f}", f"{values.max():.{digits}f}"
    return f"{low} ×" if low == high else f"{low} – {high} ×"


def _cell(row: Row | None) -> str:
    return "–" if row is None else f"{1 / row.estimate:.1f} ×, {row.error:.0e}"


def figure(frame: pd.DataFrame, results: Path, name: str) -> list[Path]:
    """results/figures/<name>.{png,svg}: how many times faster than the float32 SVD, a row a shape, a panel a spectrum.

    A line runs from the slowest threshold to the fastest, its marker is the median; it is hollow where some error
    against a float64 SVD exceeds `PRECISE`.
    """
    kernels = frame[frame["kind"] == "kernel"] if len(frame) else frame
    if kernels.empty:
        return []
    kernels = in_order(kernels)
    spectra, shapes = (list(dict.fromkeys(kernels[column])) for column in ("spectrum", "problem"))
    methods = [method for method in LOOKS if method in set(kernels["method"])]
    with matplotlib.rc_context(RC):
        drawn = Figure(figsize=(1.3 + 2.1 * len(spectra), 1.2 + 0.36 * len(shapes)), layout="constrained")
        panels = drawn.subplots(1, len(spectra), sharex=True, sharey=True, squeeze=False)[0]
        for panel, spectrum in zip(panels, spectra, strict=True):
            _panel(panel, kernels[kernels["spectrum"] == spectrum], shapes, methods)
            panel.set_title(spectrum)
        panels[0].set_yticks(range(len(shapes)), [shape.replace("x", " × ") for shape in shapes])
        panels[0].invert_yaxis()
        drawn.supxlabel("times faster than a float32 SVD", fontsize=RC["axes.labelsize"])
        handles = [_handle(method) for method in methods]
        drawn.legend(handles=handles, loc="outside upper center", ncols=len(handles), handletextpad=0.3)
    return save(drawn, results, name)


def _panel(panel: Axes, frame: pd.DataFrame, shapes: list[str], methods: list[str]) -> None:
    panel.set_xscale("log")
    panel.axvline(1.0, color="black", linewidth=0.8)
    panel.grid(axis="y", visible=False)
    for stripe in range(1, len(shapes), 2):
        panel.axhspan(stripe - 0.5, stripe + 0.5, color="#F4F4F4", linewidth=0, zorder=0)
    for place, method in enumerate(methods):
        shift = 0.7 * ((place + 0.5) / len(methods) - 0.5)
        for shape, part in frame[frame["method"] == method].groupby("problem"):
            faster, y = 1 / part["estimate"], float(shapes.index(str(shape))) + shift
            look = _look(method, hollow=bool((part["error"] > PRECISE).any()))
            panel.plot([faster.min(), faster.max()], [y, y], color=look["color"], linewidth=1.1)
            panel.plot(faster.median(), y, **look)


def _look(method: str, hollow: bool = False) -> dict[str, Any]:
    colour, marker = LOOKS[method]
    face = "white" if hollow else COLOURS[colour]
    return {"color": COLOURS[colour], "marker": marker, "markersize": 3.6, "linestyle": "none", "markerfacecolor": face}


def _handle(method: str) -> Line2D:
    return Line2D([], [], label=method, **_look(method))
