"""The benchmark's command, in its smallest size."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
import torch

from clipbench.bench import spectral
from clipbench.bench.spectral_cases import cases, error, methods


def test_the_cases_are_what_they_say() -> None:
    found = cases((64, 80), None, smoke=False)
    assert {case.spectrum for case in found} == {"flat bulk", "power law"}
    for case in found:
        sigma = torch.linalg.svdvals(case.matrix.double())
        assert case.above == int((sigma > case.tau).sum())
        assert case.ratio == pytest.approx(float(sigma[0]) / case.tau)
        if case.level == "5 % above":
            assert case.ratio <= 30.01
            assert case.above <= max(1, 0.05 * 64) + 1
        calls = methods(case)
        assert error(calls["exact"](), case) <= 1e-5
        assert ("randomized" in calls) == (case.above <= 10)


@pytest.mark.slow
def test_the_smoke_run_writes_data_table_and_figure_and_resumes(tmp_path: Path) -> None:
    spectral.main(["--smoke", "--results", str(tmp_path)])
    path = tmp_path / "data" / "bench_spectral.parquet"
    frame = pd.read_parquet(path)
    assert set(frame["kind"]) == {"kernel", "step"}
    assert frame.loc[(frame["method"] == "exact"), "error"].max() <= 1e-5
    assert "| 64 × 363 |" in (tmp_path / "tables" / "bench_spectral__kernels.md").read_text()
    assert {file.suffix for file in (tmp_path / "figures").iterdir()} == {".png", ".svg"}
    spectral.main(["--smoke", "--results", str(tmp_path)])
    pd.testing.assert_frame_equal(pd.read_parquet(path), frame)
