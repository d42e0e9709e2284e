"""Table of the trainer's overhead, from the frame that `clipbench.bench.overhead` measures."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from clipbench.runs.files import atomic_text
from clipbench.wording import amount


def tables(frame: pd.DataFrame, results: Path, name: str) -> None:
    """results/tables/<name>.md."""
    first = frame.iloc[0]
    machine = f"{first['device']}, {amount(first['threads'], 'thread')}"
    lines = [
        f"Time of the trainer's step over a bare loop's, with 95 % interval ({machine}).",
        "",
        "| case | ratio | rounds |",
        "| --- | --- | --- |",
        *(f"| {r.case} | {r.estimate:.3f} [{r.low:.3f}, {r.high:.3f}] | {r.n} |" for r in frame.itertuples()),
    ]
    (results / "tables").mkdir(parents=True, exist_ok=True)
    atomic_text(results / "tables" / f"{name}.md", "\n".join(lines) + "\n")
