"""The benchmark of a sweep's overhead at its smoke size: it measures what it says and writes its table."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pandas as pd
import pytest

from clipbench.bench import sweep


@pytest.mark.slow
def test_the_smoke_size(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sweep.main(["--smoke", "--results", str(tmp_path)])
    (row,) = pd.read_parquet(tmp_path / "data" / "bench_sweep.parquet").to_dict("records")
    assert row["runs"] == 8
    assert row["empty_job_seconds"] > 0
    assert row["job_seconds"] > row["training_seconds"] > 0
    assert row["overhead_seconds"] > 0
    assert row["all_done_seconds"] > 0
    assert "8 runs" in capsys.readouterr().out
    assert "| beyond training |" in (tmp_path / "tables" / "bench_sweep.md").read_text()


def test_job_times_are_read_from_the_starts_of_jobs() -> None:
    lines = "\n".join(f"[2026-01-01 10:00:0{i},{250 * i:03d}][HYDRA] \t#{i} : seed={i}" for i in range(3))
    starts = [sweep._seconds(match[1]) for match in sweep.STAMP.finditer(lines)]
    assert [round(b - a, 3) for a, b in pairwise(starts)] == [1.25, 1.25]
