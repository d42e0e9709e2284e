"""Small sweeps for the tests."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.runs.helpers import TINY, info, values

SWEEP = ["-m", "method=sgd,norm_clip", "seed=0,1,2", *TINY, "device=cpu", "threads=1"]


def sweep(folder: Path, *more: str, module: str = "clipbench.run", **options: Any) -> subprocess.Popen[str]:
    """`python -m clipbench.run -m …` in a process of its own, with its records in `folder`/results."""
    command = [sys.executable, "-m", *module.split(), *SWEEP, f"paths.results={folder}/results", *more]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


def finished(process: subprocess.Popen[str], status: int = 0) -> tuple[str, str]:
    """(standard output, standard error) of a sweep that must end with `status`."""
    out, errors = process.communicate(timeout=280)
    assert process.returncode == status, out + errors
    return out, errors


def contents(folder: Path) -> dict[tuple[Any, ...], Any]:
    """What a sweep left, without times: status and metric rows by method and seed."""
    found = {}
    for path in folder.rglob("run.json"):
        run = info(path.parent)
        key = (run["method"], run["seed"])
        assert key not in found, f"two records of {key}"
        found[key] = (run["status"], values(path.parent))
    return found
