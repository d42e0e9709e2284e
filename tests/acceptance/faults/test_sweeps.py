"""A sweep that is killed, and two sweeps at once on one folder: nothing lost, nothing done twice."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.acceptance.sweeps.helpers import SWEEP, contents, finished, sweep

KILLS = 20
LONG = ["steps=160", "eval_every=40", "log_every=20"]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    finished(sweep(folder, *LONG))
    return folder


@pytest.mark.slow
def test_twenty_kills_of_a_sweep_change_nothing(undisturbed: Path, tmp_path: Path) -> None:
    seed, log = random.randrange(10**6), tmp_path / "executions"
    command = [sys.executable, "-m", "tests.acceptance.faults.killer"]
    command += [str(log), str(KILLS), str(seed), "1.0", "1", "run"]
    done = subprocess.run(
        [*command, *SWEEP, *LONG, f"paths.results={tmp_path}/results"],
        capture_output=True, text=True, timeout=280, check=False,
    )  # fmt: skip
    assert done.returncode == 0, (seed, done.stderr)
    kills = json.loads(done.stdout.splitlines()[-1])["kills"]
    executions = Counter(line.split()[0] for line in log.read_text().splitlines())
    assert kills >= KILLS // 2, "the kills missed the sweep"
    assert contents(tmp_path) == contents(undisturbed), f"seed of the kills: {seed}"
    assert len(executions) == 6
    assert executions.total() <= 6 + kills, "a finished run was begun again"
    assert not list(tmp_path.rglob("checkpoint.pt"))
    assert not list(tmp_path.rglob(".*.part"))


@pytest.mark.slow
def test_two_sweeps_at_once_execute_every_run_once(undisturbed: Path, tmp_path: Path) -> None:
    log = tmp_path / "executions"
    module = f"tests.acceptance.faults.counted {log} run"
    both = [sweep(tmp_path, *LONG, "steps=1600", module=module) for _ in range(2)]
    said = [finished(each)[0] for each in both]
    executions = [line.split() for line in log.read_text().splitlines()]
    assert len(executions) == 6
    assert len({run for run, _ in executions}) == 6
    assert len({process for _, process in executions}) == 2, "one sweep did everything"
    assert sum(each.count("\nok: ") for each in said) == 6
    assert {status for status, _ in contents(tmp_path).values()} == {"ok"}
