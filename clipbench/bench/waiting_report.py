"""Table of what waiting threads cost, from the frame that `clipbench.bench.waiting` measures."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from clipbench.runs.files import atomic_text


def tables(frame: pd.DataFrame, results: Path, name: str) -> None:
    """results/tables/<name>.md."""
    first = frame.iloc[0]
    most = int(frame["beside"].max())
    lines = [
        f"Milliseconds of a training step ({first['case']}) on all {first['cores']} cores, median [quartiles] of "
        f"{int(first['n'])} steps ({first['device']}, torch {first['torch']}).",
        "",
        f"| threads that wait | alone | busy processes beside: {most} |",
        "| --- | ---: | ---: |",
    ]
    words = {"default": "spin, as by default", "passive": "sleep, as in commands that train"}
    for policy, cases in frame.groupby("policy"):
        cells = {row.beside: f"{1e3 * row.seconds:.0f} [{1e3 * row.low:.0f}, {1e3 * row.high:.0f}]"
                 for row in cases.itertuples()}  # fmt: skip
        lines.append(f"| {words[policy]} | {cells[0]} | {cells[most]} |")
    (results / "tables").mkdir(parents=True, exist_ok=True)
    atomic_text(results / "tables" / f"{name}.md", "\n".join(lines) + "\n")
