"""Configs for tests that go through every method: each choice of files is composed once, not once a test."""

from __future__ import annotations

import copy
import functools
from typing import Any

from clipbench.cli.compose import Compositions, compose_node

PARTS = ("method", "optimizer")  # groups whose files say nothing of others, and take from others `skip` alone
_compositions = Compositions()


@functools.cache
def _groups() -> frozenset[str]:
    return frozenset(compose_node([]).hydra.runtime.choices)


@functools.cache
def _whole(words: tuple[str, ...]) -> dict[str, Any]:
    return _compositions.of(words, _groups())


def composed(*words: str) -> dict[str, Any]:
    """What `compose(words)` gives, for words without tuned settings: a method's file is laid into the rest."""
    heads = {word.partition("=")[0].lstrip("+~").partition(".")[0] for word in words if "." in word.partition("=")[0]}
    parts = {} if heads & {*PARTS, "skip"} else {w.partition("=")[0]: w for w in words if w.partition("=")[0] in PARTS}
    base = _whole(tuple(word for word in words if word not in parts.values()))
    laid = {group: _whole((word,))[group] for group, word in parts.items()}
    return copy.deepcopy(base | laid)
