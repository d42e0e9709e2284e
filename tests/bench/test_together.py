"""The table of runs that go together: made again from its data, with what paper 2's protocol takes."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from clipbench.bench.rebuild import rebuild
from clipbench.bench.together_report import TRIALS, protocol

SWEEP = {"sweep_runs": 64, "sweep_lone_seconds": 90.0, "sweep_together_seconds": 30.0, "sweep_largest_difference": 2e-6}


def frame_of(cases: list[str]) -> pd.DataFrame:
    speeds = {
        "lone_per_second": 1000.0,
        "together_per_second": 6000.0,
        "ratio": 6.0,
        "ratio_low": 5.5,
        "ratio_high": 6.5,
    }
    machine = {"members": 32, "device": "a core", "torch": "2"}
    return pd.DataFrame([{"case": case, **machine, **speeds, **SWEEP} for case in cases])


def test_the_protocol_is_36_million_steps() -> None:
    assert sum(TRIALS.values()) == 1200
    (line, _) = protocol(frame_of(list(TRIALS)))
    assert "10.0 core-hours one by one, 1.7 together, that is 50 minutes of two cores" in line
    assert protocol(frame_of(["sgd", *list(TRIALS)[1:]])) == []


def test_the_table_is_made_again_from_its_data(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    frame_of(["sgd", *TRIALS]).to_parquet(tmp_path / "data" / "bench_together.parquet")
    assert rebuild(tmp_path) == ["bench_together"]
    text = (tmp_path / "tables" / "bench_together.md").read_text()
    assert "| sgd | 1000 | 6000 | 6.0 | 5.5 … 6.5 |" in text
    assert "A sweep of 64 small runs: 90 s one by one, 30 s together; largest relative difference" in text
