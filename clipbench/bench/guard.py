"""A child process under a memory and a time limit.

Resident memory is watched and the child killed, since limits on address space (RLIMIT_AS) count what torch
reserves and never touches.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from clipbench.runs.memory import resident

POLL = 0.03  # seconds; a process touches at most some 100 MB in that time
ALLOCATION = ("can't allocate memory", "not enough memory", "MemoryError", "std::bad_alloc", "out of memory")


def over_memory(limit: float) -> str:
    """The status of a child that needed more than `limit` bytes."""
    return f"out of memory (limit {gib(limit)})"


def over_time(limit: float) -> str:
    """The status of a child that took more than `limit` seconds."""
    return f"over the time limit ({limit:.0f} s)"


class ChildResult(NamedTuple):
    """`status` is "ok", or why there is no result; `memory` says whether it was memory; `result` what was printed."""

    status: str
    result: Mapping[str, Any]
    memory: bool = False


def guarded(arguments: Sequence[str], memory: float, seconds: float) -> ChildResult:
    """Run `python arguments…`, which prints one JSON object as its last line.

    memory: resident bytes, and seconds of wall time, beyond which the child is killed.
    """
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as errors:
        child = subprocess.Popen([sys.executable, *arguments], stdout=out, stderr=errors, env={**os.environ})
        try:
            verdict = _watch(child, memory, seconds)
        finally:
            child.kill()
            child.wait()
        out.seek(0)
        errors.seek(0)
        printed, complaint = out.read().strip(), errors.read().strip()
    if verdict is not None:
        return verdict
    if child.returncode == 0:
        return ChildResult("ok", json.loads(printed.splitlines()[-1]))
    if child.returncode == -signal.SIGKILL or any(words in complaint for words in ALLOCATION):
        return ChildResult(over_memory(memory), {}, memory=True)
    return ChildResult(f"failed: {complaint.splitlines()[-1] if complaint else child.returncode}", {})


def _watch(child: subprocess.Popen[bytes], memory: float, seconds: float) -> ChildResult | None:
    """Wait for the child's end; a result where a limit ended it."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            child.wait(POLL)
            return None
        except subprocess.TimeoutExpired:
            pass
        if (resident(child.pid) or 0) > memory:
            return ChildResult(over_memory(memory), {}, memory=True)
        if time.monotonic() > deadline:
            return ChildResult(over_time(seconds), {})


def gib(size: float) -> str:
    """A number of bytes for people."""
    return f"{size / 2**30:.3g} GiB"
