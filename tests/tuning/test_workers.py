"""Four real processes on one tuning: the same folder, and four folders that share only the database."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.tuning.helpers import SMALL, contents, settings, states, tuned

SHARED = ["trials=6", "methods=sgd,norm_clip", "final_seeds=0,1"]
RUNS = 2 * (6 + 2) - 1  # norm_clip's first trial is sgd's
SLOTS = 2 * (6 + 2) + 1  # and its reference run


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("alone")
    tuned(folder, *SHARED)
    return folder


def workers(log: Path, lines: list[list[str]]) -> None:
    command = [sys.executable, "-m", "tests.acceptance.faults.counted", str(log), "tune", *SMALL, *SHARED]
    started = [
        subprocess.Popen([*command, *line], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for line in lines
    ]
    for process in started:
        _, errors = process.communicate(timeout=280)
        assert process.returncode == 0, errors


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("places", [1, 4])
def test_four_workers_never_run_the_same_trial(places: int, alone: Path, tmp_path: Path) -> None:
    log = tmp_path / "executions"
    folders = [tmp_path / f"machine-{i % places}" for i in range(4)]
    # A real cluster would name a database server here; SQLite's file stands in for it.
    storage = f"storage=sqlite:///{tmp_path}/shared.db"
    workers(log, [[f"paths.results={f}/results", f"paths.tuned={f}/tuned", storage] for f in folders])
    executions = Counter(line.split()[0] for line in log.read_text().splitlines())
    assert len(executions) == RUNS
    assert set(executions.values()) == {1}, "a run was executed twice"
    assert len({line.split()[1] for line in log.read_text().splitlines()}) > 1, "one worker did everything"
    assert contents(tmp_path) == contents(alone)
    begun = states(tmp_path / "shared.db")
    assert len(set(begun)) == len(begun) == SLOTS
    for folder in {*folders}:
        assert settings(folder) == settings(alone), "every worker writes the same settings"
