"""What every experiment took: its runs, their hours, and the machines they ran on."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from clipbench.analysis.load import experiments, load
from clipbench.analysis.tables import NONE, Table, number
from clipbench.wording import amount

COLUMNS = ["experiment", "runs", "trials among them", "went together", "hours in all", "seconds of a run", "machine"]


def effort_table(results: Path) -> Table:
    """One row an experiment: how many runs, how many of them were trials or parts of a batched program, and hours.

    Hours are the sum of the runs' wall times, set-up and evaluation in them; seconds their median with quartiles.
    """
    rows = [[name, *_row(load(results, name).runs)] for name in experiments(results)]
    notes = [
        "Hours: the runs' wall times added up, as they were on machines that did other work beside: what to reckon "
        "with, no measure of speed. A run that went together with others counts with its share of the program's time.",
        "Seconds of a run: median [quartiles].",
    ]
    return Table("What the experiments took", COLUMNS, rows, notes)


def _row(runs: pd.DataFrame) -> list[str]:
    wall = pd.Series([seconds.get("wall") for seconds in runs["seconds"]], dtype=float).dropna()
    together = int(runs["together"].notna().sum()) if "together" in runs else 0
    machines = {(str(device.get("name")), int(device.get("threads") or 0)) for device in runs["device"]}
    shown = [f"{name}, {amount(threads, 'thread')}" for name, threads in sorted(machines)]
    low, middle, high = (float(wall.quantile(q)) for q in (0.25, 0.5, 0.75)) if len(wall) else (0.0, 0.0, 0.0)
    half = (high - low) / 2
    spread = f"{number(middle, half)} [{number(low, half)}, {number(high, half)}]" if high > low else number(middle)
    return [
        str(len(runs)), str(int((runs["role"] == "tune").sum())), str(together),
        f"{wall.sum() / 3600:.2g}" if len(wall) else NONE, spread if len(wall) else NONE, "; ".join(shown),
    ]  # fmt: skip
