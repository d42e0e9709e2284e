"""What of a record may be published: listed entries, each of its own form, and nothing else.

A user's name gets into a record through paths, hosts, addresses and messages. No pattern finds them all, so the other
way round: an entry is taken where it is listed here, and what it holds where it has the form that is listed for it.
Anything else is shown as "…". The loosest form is a text that can hold no path and no address.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from clipbench.runs.identity import counted

HIDDEN = "…"
WORDS = re.compile(r"[\w .,:;+()\[\]{}=<>%*×'-]{0,200}")
NAME = re.compile(r"[\w.+-]+(/[\w.+-]+)*")  # of an experiment
WORD = re.compile(r"[\w.+-]{1,100}")
TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?([+-]\d\d:\d\d|Z)?")
CLOCK = re.compile(r" @ (?=\d)")  # as in the names of processors
_KNOWN_PLACES = re.compile(r"(?i)\bhome\b|\busers\b")


def public(info: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """The listed entries of run.json, cleaned, and `config`: those of its options that count as public, cleaned."""
    found = {key: form(info[key]) for key, form in ENTRIES.items() if key in info}
    shown = clean(counted(config, "public"))
    for place in (found, shown):
        name = (info if place is found else config).get("experiment")
        if isinstance(name, str) and NAME.fullmatch(name) and not _KNOWN_PLACES.search(name):
            place["experiment"] = name
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


def numbers(value: Any) -> Any:
    """Numbers, alone or in mappings and lists."""
    if isinstance(value, Mapping):
        return {str(key): numbers(one) for key, one in value.items() if _plain(str(key))}
    if isinstance(value, list | tuple):
        return [numbers(one) for one in value]
    return value if value is None or isinstance(value, bool | int | float) else HIDDEN


def message(value: Any) -> Any:
    """An error's kind and, where they are plain, its words."""
    if not isinstance(value, str):
        return clean(value)
    kind, colon, words = value.partition(": ")
    return f"{clean(kind)}{colon}{clean(words)}" if colon else clean(kind)


def matching(form: re.Pattern[str]) -> Callable[[Any], Any]:
    """Texts of a form, alone or in lists."""

    def shown(value: Any) -> Any:
        if isinstance(value, list | tuple):
            return [shown(one) for one in value]
        return value if value is None or (isinstance(value, str) and form.fullmatch(value)) else HIDDEN

    return shown


# Entries of run.json, in the order of the collected file's columns, each with its form.
ENTRIES: dict[str, Callable[[Any], Any]] = {
    "run_id": matching(WORD), "experiment": clean, "attempt": numbers, "method": matching(WORD),
    "dataset": matching(WORD), "model": matching(WORD), "optimizer": matching(WORD), "seed": numbers,
    "role": matching(WORD), "trial": numbers, "tuned": clean, "status": matching(WORD), "error": message,
    "started": matching(TIME), "finished": matching(TIME), "versions": clean, "commit": matching(WORD),
    "dirty": numbers, "fingerprint": matching(WORD), "continued_by": matching(WORD), "device": clean,
    "precision": matching(WORD), "steps": numbers, "samples_per_step": numbers, "parameters": numbers, "data": clean,
    "steps_done": numbers, "together": numbers, "together_fingerprint": matching(WORD), "seconds": numbers,
    "train_step_seconds": numbers,
    "peak_memory_bytes": numbers, "final": numbers, "best": numbers,
}  # fmt: skip
