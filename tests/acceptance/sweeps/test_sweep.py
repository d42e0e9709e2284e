"""A sweep of real runs: what it says at its start and end, what it skips, repeats and leaves to others."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from clipbench.runs.record import Record
from tests.acceptance.sweeps.helpers import contents, finished, sweep
from tests.runs.helpers import info

ONE_SEED = ("seed=0",)


@pytest.mark.slow
def test_a_sweep_skips_what_is_done_and_goes_on_after_failures(tmp_path: Path) -> None:
    broken = "dataset.scale=1.0,-1.0"  # the second choice is bad input, found when its run is made
    out, errors = finished(sweep(tmp_path, *ONE_SEED, broken), status=2)
    assert "sweep: 4 runs, 0 done, 4 to do; no finished run yet to judge the time by" in out
    assert "sweep ended: 2 not begun, 2 ok" in out
    assert errors.splitlines()[-1].startswith("clipbench: dataset.scale must be")
    assert "Traceback" not in errors
    out, _ = finished(sweep(tmp_path))
    assert "sweep: 6 runs, 2 done, 4 to do; about" in out
    assert "judged by 2 finished runs" in out
    assert out.count("ok (already done)") == 2
    assert "sweep ended: 6 ok (2 skipped, done before)" in out
    out, _ = finished(sweep(tmp_path))
    assert "sweep: 6 runs, 6 done, 0 to do\n" in out
    assert len(contents(tmp_path)) == 6


@pytest.mark.slow
def test_failed_runs_are_named_with_their_traceback_and_tried_again(tmp_path: Path) -> None:
    finished(sweep(tmp_path, *ONE_SEED))
    (folder,) = [p.parent for p in tmp_path.rglob("run.json") if info(p.parent)["method"] == "sgd"]
    record = info(folder) | {"status": "failed", "error": "RuntimeError: device lost"}
    (folder / "run.json").write_text(json.dumps(record))
    out, errors = finished(sweep(tmp_path, *ONE_SEED, "retry=never"))
    assert "sweep ended: 1 failed, 1 ok (2 skipped, done before)" in out
    assert f"failed: sgd: RuntimeError: device lost ({folder}/error.txt)" in errors
    out, _ = finished(sweep(tmp_path, *ONE_SEED))
    assert "2 runs, 1 done, 1 to do" in out
    assert "sweep ended: 2 ok (1 skipped, done before)" in out


@pytest.mark.slow
def test_a_run_under_way_is_left_to_its_process(tmp_path: Path) -> None:
    finished(sweep(tmp_path, *ONE_SEED, "method=sgd"))
    (folder,) = [path.parent for path in tmp_path.rglob("run.json")]
    (folder / "run.json").unlink()
    with Record(folder).locked():
        out, _ = finished(sweep(tmp_path, *ONE_SEED, "method=sgd"))
    assert "left to another process" in out
    assert not (folder / "run.json").exists()
