"""Memory in use, in bytes: resident in a process, or on a CUDA device.

What is resident now is read by psutil. The most since a moment is kept by Linux alone (VmHWM, started anew through
clear_refs); elsewhere the process' own most so far stands for it, an upper bound.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import resource
import sys
from pathlib import Path
from typing import Any

import psutil


def resident(process: int | None = None) -> int | None:
    """Bytes resident in a process (this one where None) now; None where it has ended."""
    try:
        return int(psutil.Process(process).memory_info().rss)
    except psutil.Error:
        return None


def resident_peak() -> int:
    """The most resident bytes of this process since `forget_resident_peak` (Linux), or since it began."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def forget_resident_peak() -> None:
    """Set this process' peak back to what is resident now (Linux; elsewhere it stays)."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def trim() -> None:
    """Give back to the system what was freed and is still held by the allocator (glibc)."""
    gc.collect()
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)


def in_use(device: Any) -> int:
    """Bytes in use now: on the device for CUDA, resident in this process for a CPU."""
    if device.type == "cuda":
        import torch

        return int(torch.cuda.memory_allocated(device))
    return resident() or 0


def peak(device: Any) -> int:
    """The most bytes in use since `forget_peak`: on the device for CUDA, resident in this process for a CPU."""
    if device.type == "cuda":
        import torch

        return int(torch.cuda.max_memory_allocated(device))
    return resident_peak()


def forget_peak(device: Any) -> None:
    """Start the most in use anew."""
    if device.type == "cuda":
        import torch

        torch.cuda.reset_peak_memory_stats(device)
    else:
        forget_resident_peak()
