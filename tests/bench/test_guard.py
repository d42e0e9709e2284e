"""A child process beyond its limits is killed, and what it was is said."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

from clipbench.bench.guard import guarded
from clipbench.runs.memory import resident

GROW = "import time; block = b'x' * (300 << 20); time.sleep(30)"


def test_a_child_beyond_its_memory_is_killed() -> None:
    start = time.monotonic()
    status, result, memory = guarded(["-c", GROW], memory=150 * 2**20, seconds=30)
    assert (status, result, memory) == ("out of memory (limit 0.146 GiB)", {}, True)
    assert time.monotonic() - start < 15


def test_a_child_beyond_its_time_is_killed() -> None:
    assert guarded(["-c", "import time; time.sleep(30)"], 2**30, 0.3).status == "over the time limit (0 s)"


def test_the_last_line_is_the_result() -> None:
    outcome = guarded(["-c", "print('noise'); print('{\"a\": 1}')"], 2**30, 30)
    assert outcome == ("ok", {"a": 1}, False)


@pytest.mark.parametrize(
    ("code", "status", "memory"),
    [
        ("raise ValueError('no such layer')", "failed: ValueError: no such layer", False),
        ("raise RuntimeError('DefaultCPUAllocator: can\\'t allocate memory')", "out of memory (limit 1 GiB)", True),
        ("import os; os.kill(os.getpid(), 9)", "out of memory (limit 1 GiB)", True),  # the system's own killer
    ],
)
def test_failures_are_told_from_lack_of_memory(code: str, status: str, memory: bool) -> None:
    assert guarded(["-c", code], 2**30, 30) == (status, {}, memory)


def test_resident_size_of_another_process() -> None:
    code = "import sys; block = b'x' * (100 << 20); print(flush=True); sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        size = resident(child.pid)
        child.communicate()
    assert size is not None
    assert 100 * 2**20 < size < 200 * 2**20
    assert resident(child.pid) is None
