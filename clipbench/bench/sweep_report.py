"""Table of a sweep's cost beyond training, from the frame that `clipbench.bench.sweep` measures."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from clipbench.runs.files import atomic_text
from clipbench.wording import amount


def tables(frame: pd.DataFrame, results: Path, name: str) -> None:
    """results/tables/<name>.md."""
    row = frame.iloc[0]
    lines = [
        f"A sweep of {amount(row['runs'], 'run')} of two steps ({row['device']}), milliseconds per run.",
        "",
        "| beyond training | of training | skipped, beyond an empty Hydra job | an empty Hydra job | all done |",
        "| ---: | ---: | ---: | ---: | ---: |",
        f"| {1e3 * row['overhead_seconds']:.0f} | {1e3 * row['training_seconds']:.0f} "
        f"| {1e3 * row['skipped_seconds']:.1f} | {1e3 * row['empty_job_seconds']:.0f} "
        f"| {1e3 * row['all_done_seconds']:.1f} |",
    ]
    (results / "tables").mkdir(parents=True, exist_ok=True)
    atomic_text(results / "tables" / f"{name}.md", "\n".join(lines) + "\n")
