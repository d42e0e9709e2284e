"""Where a result comes from: versions, commit, machine, and the fingerprint of the code that made it."""

from __future__ import annotations

import ast
import functools
import getpass
import hashlib
import inspect
import os
import pkgutil
import platform
import socket
import subprocess
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).parents[1]
# The code that can change a result; tables, figures, tracking and the commands around it cannot.
RESULT_CODE = (
    "training",
    "estimators", "clipping", "per_sample", "spectral", "data", "models", "studies",
)  # fmt: skip


def _normalised(path: Path) -> str:
    """The module's code without comments, docstrings and layout, which cannot change a result."""
    tree = ast.parse(path.read_bytes())
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            node.body = node.body[1:] or [ast.Pass()]
    return ast.unparse(tree)


def foreign_targets(config: Any) -> frozenset[str]:
    """The `_target_`s of a config that lie outside this package: a user's own method, model or dataset."""
    if not isinstance(config, Mapping):
        return frozenset()
    found = frozenset().union(*(foreign_targets(value) for value in config.values()))
    target = config.get("_target_")
    if isinstance(target, str) and not target.startswith(f"{PACKAGE.name}."):
        found |= {target}
    return found


@functools.cache
def fingerprint(foreign: frozenset[str] = frozenset()) -> str:
    """12 hexadecimal digits: SHA-256 of the code that can change a result, and of the files of `foreign` targets."""
    digest = hashlib.sha256()
    for target in sorted(foreign):
        source = inspect.getsourcefile(inspect.unwrap(pkgutil.resolve_name(target)))
        if source is not None:
            digest.update(f"{target}\n{_normalised(Path(source))}\n".encode())
    for name in RESULT_CODE:
        path = PACKAGE / name
        for file in sorted(path.rglob("*.py")) if path.is_dir() else [path] * path.exists():
            digest.update(f"{file.relative_to(PACKAGE)}\n{_normalised(file)}\n".encode())
    return digest.hexdigest()[:12]


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
