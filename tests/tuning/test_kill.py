"""kill -9 of the tuner, and of one of several workers: nothing is lost, nothing is done twice, the end is the same."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.tuning.helpers import arguments, contents, records, settings, states

KILLS = 20
LONG = ["steps=160", "eval_every=40", "log_every=20", "trials=5", "methods=sgd,norm_clip", "final_seeds=0,1,2"]
RUNS = 2 * (5 + 3) - 1  # norm_clip's first trial is sgd's
SLOTS = 2 * (5 + 3) + 1  # and its reference run


def killed(folder: Path, kills: int, longest: float, workers: int, seed: int, *more: str) -> tuple[int, list[str]]:
    """(kills that hit, run id of every execution that was begun)."""
    folder.mkdir()
    log = folder / "executions"
    command = [sys.executable, "-m", "tests.acceptance.faults.killer"]
    command += [str(log), str(kills), str(seed), str(longest), str(workers)]
    done = subprocess.run(
        [*command, "tune", *arguments(folder, *LONG, *more)], capture_output=True, text=True, timeout=280, check=False
    )
    assert done.returncode == 0, (seed, done.stderr)
    executions = [line.split()[0] for line in log.read_text().splitlines()]
    return json.loads(done.stdout.splitlines()[-1])["kills"], executions


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reference") / "tuning"
    kills, executions = killed(folder, 0, 0.0, 1, 0)
    assert kills == 0
    assert len(executions) == RUNS
    return folder


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("workers", [1, 2])
def test_twenty_kills_change_nothing(workers: int, undisturbed: Path, tmp_path: Path) -> None:
    seed = random.randrange(10**6)
    folder = tmp_path / "tuning"
    kills, executions = killed(folder, KILLS, 1.5 / workers, workers, seed)
    assert kills >= KILLS // 2, "the kills missed the tuning"
    assert contents(folder) == contents(undisturbed), f"seed of the kills: {seed}"
    assert settings(folder) == settings(undisturbed)
    begun = Counter(states(folder / "results" / "tune" / "studies.db"))
    assert len(begun) == SLOTS
    assert set(begun.values()) == {1}, "every index has one trial"
    assert all(state == "COMPLETE" for _, _, state in begun)
    # A run is begun once, and once more for each kill that hit it: never again after it was finished.
    assert RUNS <= len(executions) <= RUNS + kills
    assert all(run["status"] == "ok" for run, _ in records(folder))
    assert not list(folder.rglob("checkpoint.pt"))
    assert not list(folder.rglob(".*.part"))
