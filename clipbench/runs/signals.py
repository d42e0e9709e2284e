"""SIGINT and SIGTERM: the first stops a job at its next step or batch of an evaluation, a second acts at once."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any, Protocol

from clipbench.errors import Interrupted

AT_ONCE: dict[int, Any] = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
SAID = b"clipbench: stopping after this step or batch of the evaluation (once more: at once)\n"


class Stoppable(Protocol):
    """A job, or a batch of runs."""

    def stop(self) -> None: ...


class Wish:
    """The signal that asked for the stop, None while none has."""

    def __init__(self, job: Stoppable) -> None:
        self.job = job
        self.number: int | None = None

    def check(self) -> None:
        """Raise Interrupted where a signal has asked for the stop."""
        if self.number is not None:
            raise Interrupted(self.number)


@contextlib.contextmanager
def obeyed(job: Stoppable) -> Iterator[Wish]:
    """For the block, the first SIGINT or SIGTERM stops `job`; in other threads than the main one, nothing changes."""
    wish = Wish(job)
    if threading.current_thread() is not threading.main_thread():
        yield wish
        return
    before = {number: signal.getsignal(number) for number in AT_ONCE}
    # What a shell starts in the background ignores SIGINT; here somebody has sent one, and a second counts as well.
    second = {n: AT_ONCE[n] if handler is signal.SIG_IGN else handler for n, handler in before.items()}

    def take(number: int, frame: FrameType | None) -> None:
        first, wish.number = wish.number is None, number
        for each, handler in second.items():
            signal.signal(each, handler)
        if not first:  # it came before the handlers above were back
            signal.raise_signal(number)
            return
        job.stop()
        with contextlib.suppress(OSError):
            os.write(2, SAID)  # print is not safe in a handler

    for number in before:
        signal.signal(number, take)
    try:
        yield wish
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
