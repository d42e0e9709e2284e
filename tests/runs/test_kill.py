"""kill -9 at random moments, SIGTERM and SIGINT: the same command goes on, and ends bit for bit the same."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.runs.helpers import info, start, values

LONG = ["steps=600", "eval_every=60", "log_every=20", "checkpoint_every=20", "dataset.samples=600",
        "dataset.validation=100", "dataset.test=100", "seed=3"]  # fmt: skip
METHODS = {
    "sgd": ["method=sgd", "optimizer=sgd"],
    "ps_clip": ["method=ps_clip", "accumulation=2", "batch_size=8"],
    "micro_batch_clip": ["method=micro_batch_clip", "accumulation=2", "batch_size=8", "optimizer=adam"],
    "ema": [
        "method=norm_clip",
        "method.clipper.threshold={_target_:clipbench.clipping.EmaThreshold,coefficient:0.9}",
    ],
    "quantile_noise": ["method=spectral_clip_quantile", "noise=rank_one", "optimizer=muon"],
}


def only_record(results: Path) -> Path:
    (found,) = results.glob("runs/*/*")
    return found


@pytest.mark.parametrize(
    # The one with a part of every kind: thresholds that remember, noise, an optimizer with two states.
    "method",
    [m if m == "quantile_noise" else pytest.param(m, marks=pytest.mark.slow) for m in METHODS],
)
def test_killed_at_random_moments_ends_bit_identical(method: str, tmp_path: Path) -> None:
    seed = random.randrange(10**6)
    command = [sys.executable, "-m", "tests.runs.killer", str(tmp_path), "10", str(seed), "0.3", *LONG]
    done = subprocess.run([*command, *METHODS[method]], capture_output=True, text=True, timeout=170, check=False)
    assert done.returncode == 0, done.stderr
    ended = json.loads(done.stdout.splitlines()[-1])
    assert (ended["reference"], ended["killed"]) == (0, 0), (seed, done.stderr)
    assert ended["kills"] >= 5, "the kills missed the run"
    reference, killed = only_record(tmp_path / "reference"), only_record(tmp_path / "killed")
    assert values(killed) == values(reference), f"seed of the kills: {seed}"
    assert info(killed)["status"] == info(reference)["status"] == "ok"
    assert not list(killed.glob("*checkpoint*"))
    assert not list(killed.glob(".*.part"))


@pytest.mark.slow
@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_a_signalled_command_goes_on_where_it_stopped(number: int, status: int, tmp_path: Path) -> None:
    overrides = [*LONG, "steps=20000", "eval_every=2000", "log_every=500", "checkpoint_every=1000", "threads=1"]
    interrupted, reference = tmp_path / "interrupted", tmp_path / "reference"
    interrupted.mkdir()
    reference.mkdir()
    first = start(interrupted, *overrides)
    while not list(interrupted.glob("runs/*/*/checkpoint.pt")):
        assert first.poll() is None, first.communicate()[1]
        time.sleep(0.02)
    first.send_signal(number)
    assert first.wait(60) == status
    folder = only_record(interrupted)
    assert info(folder)["status"] == "running"
    second = start(interrupted, *overrides)
    out, err = second.communicate(timeout=120)
    assert second.returncode == 0, err
    assert "resuming at step" in out
    assert out.splitlines()[-1] == str(folder)
    whole = start(reference, *overrides)
    assert whole.wait(120) == 0
    assert values(folder) == values(only_record(reference))
