"""Whose code a config may name.

A file's `_target_` is clipbench's own, or of a package that is installed with an entry point `clipbench.*`, or of one
that the user allowed (`--allow PACKAGE`, or the variable CLIPBENCH_ALLOW); what the user types on the command line is
allowed too. Nothing else is even imported. The variable also tells the processes that a command starts.
"""

from __future__ import annotations

import functools
import importlib.metadata
import os
import re
from collections.abc import Iterable, Sequence

from clipbench.errors import ConfigError

OWN = "clipbench"
VARIABLE = "CLIPBENCH_ALLOW"
ENTRY_POINTS = ("clipbench.methods", "clipbench.models", "clipbench.datasets", "clipbench.experiments")
_NAME = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*")
_INSIDE = re.compile(r"_target_['\"]?\s*:\s*['\"]?([\w.]+)")


@functools.cache
def plugins() -> tuple[importlib.metadata.EntryPoint, ...]:
    """The entry points `clipbench.*` of installed packages; none of them is imported."""
    return tuple(point for group in ENTRY_POINTS for point in importlib.metadata.entry_points(group=group))


def allow(names: Iterable[str]) -> None:
    """Trust packages, modules or classes by dotted name. Raises ConfigError for what is no such name."""
    kept = _allowed()
    for name in names:
        if not _NAME.fullmatch(name):
            raise ConfigError(f"--allow must be the name of a package, as my_package, got {name or 'nothing'}")
        if name not in kept:
            kept.append(name)
    if kept:
        os.environ[VARIABLE] = ",".join(kept)


def allow_typed(words: Sequence[str]) -> None:
    """Trust each `_target_` that stands in a user's own command line."""
    for word in words:
        key, _, value = word.partition("=")
        found = _INSIDE.findall(value)
        if key.endswith("_target_"):
            found += [part.strip(" '\"") for part in value.strip("[]").split(",")]
        allow(name for name in found if _NAME.fullmatch(name))


def trusted(name: str) -> bool:
    """Whether a config may name the module, class or function `name`."""
    tops = [OWN, *(point.module.partition(".")[0] for point in plugins()), *_allowed()]
    return any(name == top or name.startswith(f"{top}.") for top in tops)


def _allowed() -> list[str]:
    return [name for name in os.environ.get(VARIABLE, "").split(",") if name]
