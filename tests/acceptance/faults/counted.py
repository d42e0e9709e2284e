"""A command with its executions counted: `python -m tests.acceptance.faults.counted LOG run|tune ARGUMENTS…`.

Every time a process really begins to train a run (holding its lock), a line "<run id> <process id>" is appended.
"""

from __future__ import annotations

import os
import sys
from typing import Any

from clipbench.cli.command import command
from clipbench.runs.recorder import Recorder


def count(log: str) -> None:
    """From here on this process and its forks append their executions to `log`."""
    begin = Recorder.begin

    def counting(self: Recorder, report: Any) -> None:
        descriptor = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(descriptor, f"{self.record.folder.name} {os.getpid()}\n".encode())
        os.close(descriptor)
        begin(self, report)

    Recorder.begin = counting  # type: ignore[method-assign]


def call(which: str, arguments: list[str]) -> None:
    """`python -m clipbench.<which>` with these arguments, in this process."""
    from clipbench import run, tune

    if which == "tune":
        tune.main(arguments)
    else:
        sys.argv = ["clipbench.run", *arguments]
        run.main()


if __name__ == "__main__":
    count(sys.argv[1])
    command(lambda: call(sys.argv[2], sys.argv[3:]))
