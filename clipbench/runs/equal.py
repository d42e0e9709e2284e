"""Fingerprints that count as the same: pairs of code whose short runs were equal bit for bit (conf/equal.yaml).

An entry is `{old, new, experiment, method, together, commit, steps, rows, digest}`: the fingerprints, what was run
(together: as members of one program), the commit of the old code, and the digest of the metric rows that both left.
`python -m clipbench.verify --equal` writes them.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from clipbench.errors import RecordError
from clipbench.runs.files import atomic_text, reason

_PACKAGE = Path(__file__).parents[1]
# In a checkout conf/ lies beside the package; in an installed wheel, inside it.
PATH = next(
    (folder / "equal.yaml" for folder in (_PACKAGE.parent / "conf", _PACKAGE / "conf") if folder.is_dir()),
    _PACKAGE / "conf" / "equal.yaml",
)
HEADER = """\
# Fingerprints that count as the same, with their evidence; written by clipbench.verify --equal and not by hand:
# under both, the first steps, an evaluation, a checkpoint and (of a lone run) a resume of `method` in `experiment` left
# the same rows, whose digest is `digest`; `old` is the code of `commit`.
"""


def same(one: str | None, other: str | None) -> bool:
    """Whether two fingerprints are equal, or are entered as such, directly or through others."""
    return one == other or (one is not None and other is not None and representative(one) == representative(other))


def representative(fingerprint: str) -> str:
    """One fingerprint for all that count as the same."""
    return _classes().get(fingerprint, fingerprint)


@functools.cache
def _classes() -> dict[str, str]:
    """Fingerprint → the smallest one that it is connected with."""
    found: dict[str, str] = {}

    def top(name: str) -> str:
        while found.setdefault(name, name) != name:
            name = found[name]
        return name

    for entry in entries():
        low, high = sorted((top(str(entry["old"])), top(str(entry["new"]))))
        found[high] = low
    return {name: top(name) for name in list(found)}


def entries() -> list[dict[str, Any]]:
    """What is entered. Raises RecordError where the file is not what it should be."""
    if not PATH.exists():
        return []
    try:
        found = yaml.safe_load(PATH.read_text(encoding="utf-8")) or []
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise RecordError(f"{PATH} cannot be read: {reason(error)}") from error
    if not isinstance(found, list) or not all(isinstance(e, Mapping) and {"old", "new"} <= set(e) for e in found):
        raise RecordError(f"{PATH} must be a list of entries with old and new")
    return [dict(entry) for entry in found]


def enter(new: Sequence[Mapping[str, Any]]) -> int:
    """Add entries whose fingerprints do not count as the same yet; how many were added."""
    fresh = [dict(entry) for entry in new if not same(str(entry["old"]), str(entry["new"]))]
    if fresh:
        atomic_text(PATH, HEADER + yaml.safe_dump([*entries(), *fresh], sort_keys=False))
        _classes.cache_clear()
    return len(fresh)
