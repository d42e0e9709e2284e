"""A run without a terminal says how far it is; a signal is answered at once and obeyed within a step."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from clipbench.cli.compose import compose
from clipbench.data.base import Batch
from clipbench.data.vectors import VectorData
from clipbench.errors import Interrupted
from clipbench.runs.execute import execute
from clipbench.runs.progress import PAUSE, Progress, duration, shown
from clipbench.runs.signals import SAID, obeyed
from tests.runs.helpers import TINY, info, values

SMALL = ["device=cpu", "steps=20", "eval_every=5", "log_every=10", "dataset.samples=64", "dataset.validation=16"]


class Job:
    def __init__(self, done: int, steps: int) -> None:
        self.done, self.steps, self.rows = done, steps, []


def row(split: str, metric: str = "loss", value: float = 1.0) -> dict[str, object]:
    return {"split": split, "metric": metric, "value": value}


def test_one_line_at_each_evaluation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    execute(compose([*SMALL, f"paths.results={tmp_path}"]))
    out, err = capsys.readouterr()
    lines = err.splitlines()
    assert [line.split()[1] for line in lines] == ["0", "5", "10", "15", "20"]
    assert all(" of 20" in line and "validation loss " in line for line in lines)
    assert "train loss " in lines[2], "what was logged at the same step is in the line"
    assert "test loss " in lines[4]
    assert out == "", "what a command is asked for goes to stdout, and this is not it"


def test_a_trial_s_lines_are_its_tunings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    execute(compose([*SMALL, f"paths.results={tmp_path}", "role=tune", "trial=0"]))
    assert capsys.readouterr().err == ""


def test_a_study_says_a_line_at_most_every_ten_seconds(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    job = Job(0, 40)
    with Progress(job) as progress:
        for done in range(1, 41):
            now[0] += PAUSE / 4
            job.done = done
            progress.advance([row("study")])
    lines = capsys.readouterr().err.splitlines()
    assert [line.split()[1] for line in lines] == ["1", "5", "9", "13", "17", "21", "25", "29", "33", "37", "40"]
    assert lines[1].startswith("step 5 of 40, about 88 s left")


def test_lines_of_the_training_alone_are_none(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(Job(5, 10)) as progress:
        progress.advance([row("train")])
        progress.advance([])
    assert capsys.readouterr().err == ""


def test_several_runs_show_their_range() -> None:
    rows = [row("validation", value=3.0), row("validation", value=1.5), row("validation", "accuracy", 0.5)]
    assert shown(rows) == ": validation loss 1.5 to 3, validation accuracy 0.5"
    assert shown([row("validation", "sigma_max")]) == ""


@pytest.mark.parametrize(("seconds", "text"), [(5.4, "5 s"), (119, "119 s"), (600, "10 min"), (7200, "2.0 h")])
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_answered_at_once_and_obeyed_within_a_step(number: int, tmp_path: Path) -> None:
    """Between two boundaries: nothing is logged, evaluated or saved before the end, which is far away."""
    words = ["device=cpu", "threads=1", "steps=1000000", "eval_every=1000000", "log_every=1000000"]
    command = [sys.executable, "-m", "clipbench.run", *words, "checkpoint_every=1000000", f"paths.results={tmp_path}"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL)
    assert process.stderr is not None
    assert process.stderr.readline().startswith(b"step 0 of 1000000")
    time.sleep(1.0)
    process.send_signal(number)
    before = time.monotonic()
    assert process.stderr.readline() == SAID
    assert process.wait(60) == 128 + number
    assert time.monotonic() - before < 30, "far less than the run"
    assert b"interrupted: checkpoint written" in process.stderr.read()
    assert len(list(tmp_path.rglob("checkpoint.pt"))) == 1


@pytest.fixture(params=[signal.default_int_handler, signal.SIG_IGN], ids=["as usual", "ignored"])
def handler(request: pytest.FixtureRequest) -> Iterator[Any]:
    """Of SIGINT: Python's own, or none, as a shell has it in what it starts in the background."""
    before = signal.signal(signal.SIGINT, request.param)
    yield request.param
    signal.signal(signal.SIGINT, before)


def test_a_second_signal_in_the_midst_of_the_first_acts_at_once(handler: Any) -> None:
    class Restless:
        asked = 0

        def stop(self) -> None:
            self.asked += 1
            signal.raise_signal(signal.SIGINT)

    job = Restless()
    with pytest.raises(KeyboardInterrupt), obeyed(job):
        signal.raise_signal(signal.SIGTERM)
    assert job.asked == 1
    assert signal.getsignal(signal.SIGINT) == handler


@pytest.mark.slow
def test_a_second_signal_acts_at_once(tmp_path: Path) -> None:
    code = (
        "import time\nfrom clipbench.runs import signals\n"
        "class Job:\n    def stop(self): print('asked', flush=True)\n"
        "with signals.obeyed(Job()):\n    print('ready', flush=True)\n    time.sleep(600)\n    time.sleep(600)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    assert process.stdout.readline() == "asked\n"
    assert process.poll() is None, "the first one only asks"
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode != 0
    assert "KeyboardInterrupt" in err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_within_an_evaluation_leaves_a_checkpoint_that_ends_the_same(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(name: str) -> Path:
        words = [*TINY, "device=cpu", "eval_batch_size=10", f"paths.results={tmp_path}/{name}"]
        folder: Path = execute(compose(words), lambda line: None).folder
        return folder

    genuine, seen = VectorData.evaluation, 0

    def evaluation(self: VectorData, split: str, size: int) -> Iterator[Batch]:
        nonlocal seen
        for batch in genuine(self, split, size):
            seen += 1
            if seen == 25:  # of 20 in each evaluation: the second one's, at step 10
                os.kill(os.getpid(), number)
            yield batch

    with monkeypatch.context() as patch:
        patch.setattr(VectorData, "evaluation", evaluation)
        with pytest.raises(Interrupted):
            run("interrupted")
    assert seen == 25
    (left,) = (tmp_path / "interrupted").rglob("run.json")
    assert (info(left.parent)["status"], (left.parent / "checkpoint.pt").exists()) == ("running", True)
    assert {row[0] for row in values(left.parent) if row[3] == "validation"} == {0}
    assert values(run("interrupted")) == values(run("undisturbed"))
