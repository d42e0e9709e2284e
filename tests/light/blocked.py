"""Runs Python code where none of the modules of the extras can be imported, as after the light install."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).parents[2]
HOOK = """
from importlib.machinery import PathFinder

find = PathFinder.find_spec

def find_others(name, path=None, target=None):
    return None if name.partition(".")[0] in {names!r} else find(name, path, target)

PathFinder.find_spec = find_others
"""


def run(folder: Path, names: Iterable[str], *words: str) -> subprocess.CompletedProcess[str]:
    """`python *words` where `names` are not found from the start, by a sitecustomize in `folder`."""
    (folder / "sitecustomize.py").write_text(HOOK.format(names=sorted(names)))
    path = os.pathsep.join([str(folder), str(ROOT)])
    return subprocess.run(
        [sys.executable, *words],
        env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        cwd=folder,
    )
