"""Sweeps whose runs are processes of their own: joblib on one machine, submitit as on a cluster."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.acceptance.sweeps.helpers import contents, finished, sweep


@pytest.fixture(scope="module")
def in_turn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("in_turn")
    finished(sweep(folder, "seed=0"))
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    "launcher",
    [
        ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"],
        ["hydra/launcher=submitit_local", "hydra.launcher.timeout_min=5", "hydra.launcher.nodes=1"],
    ],
    ids=["joblib", "submitit_local"],
)
def test_the_records_are_those_of_a_sweep_in_turn(launcher: list[str], in_turn: Path, tmp_path: Path) -> None:
    out, _ = finished(sweep(tmp_path, "seed=0", *launcher))
    assert "sweep: 2 runs, 0 done, 2 to do" in out
    assert "sweep ended: 2 ok\n" in out
    assert contents(tmp_path) == contents(in_turn)
    if "joblib" in launcher[0]:
        assert "disturb each other's clocks" in out
    else:
        assert f"logs: {tmp_path}/results/hydra/" in out
    out, _ = finished(sweep(tmp_path, "seed=0", *launcher))
    assert "sweep: 2 runs, 2 done, 0 to do" in out
    assert "sweep ended: 2 ok (2 skipped, done before)" in out


@pytest.mark.slow
def test_a_failing_job_of_a_cluster_does_not_take_the_others_along(in_turn: Path, tmp_path: Path) -> None:
    launcher = ["hydra/launcher=submitit_local", "hydra.launcher.timeout_min=5"]
    out, errors = finished(sweep(tmp_path, *launcher, "seed=0", "method=sgd", "optimizer.lr=-1,0.05"), status=2)
    assert "sweep ended: 1 not begun, 1 ok" in out
    assert "clipbench: optimizer.lr must be finite and > 0, got -1" in errors
