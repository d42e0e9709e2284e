"""The fingerprint of the code that a run can reach: its targets, its trainer or study, and what they refer to.

It is the same wherever a module lies and under every version of Python, and leaves out comments, docstrings and
layout. Tracking, plotting and the commands are not reached. Numbers and names of the config are in the run's id.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from clipbench.errors import RecordError
from clipbench.runs.files import atomic_text
from clipbench.runs.reach import PACKAGE, Reach
from clipbench.runs.source import Definition, Module, read

FORMAT = 4  # of what is kept of a source file
SETTLED = 2.0  # seconds after which a file's time tells that it was not written again
# Where every run begins: what forms the numbers of a record.
COMMON = ("clipbench.runs.checkpoint", "clipbench.training.setup.set_numerics", "clipbench.config.device.pick_device")
TRAINING = ("clipbench.training.trainer.Trainer", "clipbench.training.setup.build")
STUDY = ("clipbench.training.setup.build_study",)
TOGETHER = ("clipbench.training.together.building.build_all", "clipbench.training.together.trainer.TogetherTrainer")
GROUPS = ("model", "dataset", "method", "optimizer", "schedule", "noise", "study")


def fingerprint(config: Mapping[str, Any]) -> str:
    """12 hexadecimal digits of the code that the run of `config` (groups it does not use left out) can reach."""
    return _digest(frozenset(roots(config)))


def together_fingerprint(config: Mapping[str, Any]) -> str:
    """`fingerprint` of what a run reaches that goes together with others: the batched program, beside its own code."""
    return _digest(frozenset({*roots(config), *TOGETHER}))


def roots(config: Mapping[str, Any]) -> set[str]:
    """The names from which the run of a config reaches its code."""
    study = "_target_" in (config.get("study") or {})
    begins = {*COMMON, *(STUDY if study else ()), *(TRAINING if "model" in config else ())}
    return begins | {target for group in GROUPS for target in targets(config.get(group))}


def targets(node: Any) -> Iterator[str]:
    """Every `_target_` within a node of a config."""
    if isinstance(node, list):
        for value in node:
            yield from targets(value)
    if isinstance(node, Mapping):
        if isinstance(node.get("_target_"), str):
            yield node["_target_"]
        for value in node.values():
            yield from targets(value)


@functools.cache
def _digest(names: frozenset[str]) -> str:
    """Kept for the process, whose code stays what it was when it was imported."""
    with _sources() as sources:
        return digest(names, sources)


def digest(names: frozenset[str], sources: Sources) -> str:
    """12 hexadecimal digits of what is reached from `names` in the files as they are now."""
    return Reach(sources.module, {name.partition(".")[0] for name in names}).digest(sorted(names))[:12]


class Sources:
    """Parsed source files, kept by path, time and size."""

    def __init__(self, kept: dict[str, Any] | None = None) -> None:
        self.kept: dict[str, Any] = kept or {}
        self.changed = False

    def module(self, path: Path, name: str) -> Module:
        """The module called `name`, whose source is at `path`."""
        stat = path.stat()
        mark = [FORMAT, name, stat.st_mtime_ns, stat.st_size]
        entry = self.kept.get(str(path))
        if entry is not None and entry["mark"] == mark:
            return _unpacked(entry["module"])
        module = read(path.read_text(encoding="utf-8"), name, path.name == "__init__.py")
        if time.time() - stat.st_mtime > SETTLED:
            self.kept[str(path)] = {"mark": mark, "module": module}
            self.changed = True
        return module


def _unpacked(packed: Any) -> Module:
    definitions, imports, stars, effects = packed
    return Module([Definition(*_chains(definition)) for definition in definitions], imports, stars, effects)


def _chains(definition: Any) -> Any:
    names, raw, references, imports, decorators, always = definition
    return names, raw, [tuple(c) for c in references], imports, [tuple(c) for c in decorators], always


@contextlib.contextmanager
def _sources() -> Iterator[Sources]:
    """The parsed files of earlier processes, from the user's cache; a cache that cannot be used is done without."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    path = Path(home) / PACKAGE.name / "sources.json"
    kept: dict[str, Any] = {}
    with contextlib.suppress(OSError, ValueError):
        kept = json.loads(path.read_text(encoding="utf-8"))
    sources = Sources(kept if isinstance(kept, dict) else {})
    yield sources
    if sources.changed:
        with contextlib.suppress(OSError, RecordError):
            path.parent.mkdir(parents=True, exist_ok=True)
            atomic_text(path, json.dumps(sources.kept, separators=(",", ":")))
