"""What of a record may be published: listed entries, of listed forms, and nothing else.

A user's name gets into a record through paths, hosts, addresses and messages. No pattern finds them all, so the other
way round: an entry is taken where it is listed here and what it holds is a number, or a text of a form that can hold
no path and no address. Any other text is shown as "…".
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from clipbench.runs.identity import counted

# Entries of run.json, in the order of the collected file's columns.
ENTRIES = (
    "run_id", "experiment", "attempt", "method", "dataset", "model", "optimizer", "seed", "role", "trial", "tuned",
    "status", "error", "started", "finished", "versions", "commit", "dirty", "fingerprint", "continued_by", "device",
    "precision", "steps", "samples_per_step", "parameters", "data", "steps_done", "together", "together_fingerprint",
    "seconds", "train_step_seconds", "peak_memory_bytes", "final", "best",
)  # fmt: skip
HIDDEN = "…"
WORDS = re.compile(r"[\w .,:;+()\[\]{}=<>%*×'-]{0,200}")
NAME = re.compile(r"[\w.+-]+(/[\w.+-]+)*")  # of an experiment
CLOCK = re.compile(r" @ (?=\d)")  # as in the names of processors
_KNOWN_PLACES = re.compile(r"(?i)\bhome\b|\busers\b")


def public(info: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """The listed entries of run.json, cleaned, and `config`: those of its options that count as public, cleaned."""
    found = {key: clean(info[key]) for key in ENTRIES if key in info}
    shown = clean(counted(config, "public"))
    for place in (found, shown):
        name = (info if place is found else config).get("experiment")
        if isinstance(name, str) and NAME.fullmatch(name) and not _KNOWN_PLACES.search(name):
            place["experiment"] = name
    if isinstance(info.get("error"), str):
        kind, colon, words = info["error"].partition(": ")
        found["error"] = f"{clean(kind)}{colon}{clean(words)}" if colon else clean(kind)
    return found | {"config": shown}


def clean(value: Any) -> Any:
    """`value` with every text that is not of a listed form hidden; entries with such names are left out."""
    if isinstance(value, Mapping):
        return {str(key): clean(one) for key, one in value.items() if _plain(str(key))}
    if isinstance(value, list | tuple):
        return [clean(one) for one in value]
    if value is None or isinstance(value, bool | int | float):
        return value
    return str(value) if _plain(str(value)) else HIDDEN


def _plain(text: str) -> bool:
    return WORDS.fullmatch(CLOCK.sub(" ", text)) is not None
