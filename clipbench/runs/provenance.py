"""Where a result comes from: versions, commit and machine."""

from __future__ import annotations

import functools
import getpass
import os
import platform
import socket
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).parents[1]


@functools.cache
def commit() -> tuple[str | None, bool | None]:
    """(commit, whether code or configuration differ from it) of the package's checkout; (None, None) outside of one."""

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", *arguments], cwd=PACKAGE, capture_output=True, text=True, timeout=10, check=True
            )
        except (OSError, subprocess.SubprocessError):
            return None
        return done.stdout.strip()

    head = git("rev-parse", "HEAD")
    code = (":(top)clipbench", ":(top)conf", ":(top)constraints.txt")  # what a run writes into results/ is no change
    changes = git("status", "--porcelain", "--untracked-files=no", "--", *code)
    return head, None if changes is None else bool(changes)


@functools.cache
def versions() -> dict[str, str]:
    """Versions of Python and of the libraries that compute."""
    names = ("clipbench", "torch", "torchvision", "numpy", "hydra-core")
    found = {"python": platform.python_version()}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def device_info(device: Any) -> dict[str, Any]:
    """Type, name and CPU threads of the device (`torch.device`) a run uses."""
    import torch

    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _cpu_name()
    return {"type": device.type, "name": name, "threads": torch.get_num_threads(), "cores": os.cpu_count()}


@functools.cache
def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def machine() -> dict[str, str]:
    """Host and user, for finding one's own runs; `make collect` drops both."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = "unknown"
    return {"host": socket.gethostname(), "user": user}
