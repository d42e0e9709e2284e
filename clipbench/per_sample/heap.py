"""Memory that a step frees and the next one needs again: kept by the C library, not handed to the system and back."""

from __future__ import annotations

import torch

BYTES = 31 << 20
"""Just below the 32 MiB up to which glibc adapts its thresholds."""


def keep_freed_memory() -> None:
    """Let glibc keep up to 62 MiB of freed memory on the heap, for the rest of the process (elsewhere: no effect).

    glibc returns memory at the top of the heap to the system once it exceeds twice the largest mapped block freed so
    far. All δ of a step are freed together, and without this a small transformer spent a tenth of its step on page
    faults. Allocating one large block and freeing it, untouched, raises the limit; `mallopt` would do the same.
    """
    block = torch.empty(BYTES, dtype=torch.uint8, device="cpu")
    del block
