"""The benchmark's command, in its smallest size."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
import torch

from clipbench.bench import spectral
from clipbench.bench.spectral_cases import cases, error, methods
from clipbench.bench.spectral_report import _shapes


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


def test_the_table_in_short_sorts_cells_by_what_is_above() -> None:
    rows = []
    for level, above, ratio, times in [
        ("a", 1, 1.2, 20.0),
        ("b", 5, 30.0, 8.0),
        ("c", 50, 30.0, 3.0),
        ("d", 90, 1e6, 0.5),
    ]:
        cell = {"problem": "100x300", "spectrum": "flat", "level": level, "above": above, "sigma_over_tau": ratio}
        rows.append(cell | {"method": "svd", "seconds": 0.1, "estimate": 1.0, "error": None})
        rows.append(cell | {"method": "exact", "seconds": 0.1 / times, "estimate": 1 / times, "error": 1e-6 * ratio})
        for method, seconds in (("svd_lowrank", 0.02), ("randomized, warm", 0.01)):
            rows.append(cell | {"method": method, "seconds": seconds, "estimate": 0.1, "error": 1e-3})
    line = _shapes(pd.DataFrame(rows), "a machine")[-1]
    assert line == "| 100 × 300 | 100 | 20.0 × | 8.0 × | 3.0 × | 3e-05 | 0.50 × | 1e-03 | 1e-03 |"


@pytest.mark.slow
def test_the_smoke_run_writes_data_table_and_figure_and_resumes(tmp_path: Path) -> None:
    spectral.main(["--smoke", "--results", str(tmp_path)])
    path = tmp_path / "data" / "bench_spectral.parquet"
    frame = pd.read_parquet(path)
    assert set(frame["kind"]) == {"kernel", "step"}
    assert frame.loc[(frame["method"] == "exact"), "error"].max() <= 1e-5
    for table in ("kernels", "shapes"):
        assert "| 64 × 363 |" in (tmp_path / "tables" / f"bench_spectral__{table}.md").read_text()
    assert {file.suffix for file in (tmp_path / "figures").iterdir()} == {".png", ".svg"}
    spectral.main(["--smoke", "--results", str(tmp_path)])
    pd.testing.assert_frame_equal(pd.read_parquet(path), frame)
