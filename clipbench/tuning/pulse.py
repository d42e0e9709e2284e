"""Who is alive: a worker counts up while it holds a trial, and others watch the count, not any clock.

Comparing a count with itself some time later needs no agreement between the clocks of two machines, and a clock
that is set back changes nothing.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator

BEAT = 20.0  # seconds between two counts
PATIENCE = 120.0  # seconds without a count after which a worker is taken for dead
UNOWNED_PATIENCE = 30.0  # the same for a trial that was claimed but not signed yet: milliseconds, if nothing is busy


@contextlib.contextmanager
def beating(count: Callable[[int], None], beat: float) -> Iterator[None]:
    """Call `count` with 1, 2, 3 … every `beat` seconds, in a thread, until the block ends."""
    ended = threading.Event()

    def loop() -> None:
        number = 0
        while not ended.wait(beat):
            number += 1
            with contextlib.suppress(Exception):  # a storage that is away for a moment; the next beat tries again
                count(number)

    thread = threading.Thread(target=loop, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


class Monitor:
    """Remembers when a trial's sign of life last changed, by this process' own monotonic clock."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._seen: dict[int, tuple[object, float]] = {}

    def silent(self, trial: int, sign: object, patience: float) -> bool:
        """Whether `sign` has been the same for `patience` seconds of watching."""
        before = self._seen.get(trial)
        if before is None or before[0] != sign:
            self._seen[trial] = (sign, self._now())
            return False
        return self._now() - before[1] >= patience
