"""Standard streams that outlast their reader."""

from __future__ import annotations

import os
import sys
from typing import Any


class Lasting:
    """A stream that goes on in silence where its reader is gone (`| head`, a closed terminal): work comes first."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        try:
            return int(self._stream.write(text))
        except (BrokenPipeError, OSError):
            self._silence()
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except (BrokenPipeError, OSError):
            self._silence()

    def _silence(self) -> None:
        """Let the stream's own descriptor lead nowhere, so that what is still in its buffer disturbs no exit."""
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self._stream.fileno())
        os.close(nowhere)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def outlast() -> None:
    """Let this process go on to its end, and in silence, where nobody reads its output any more."""
    sys.stdout, sys.stderr = Lasting(sys.stdout), Lasting(sys.stderr)  # type: ignore[assignment]
