"""What a step of a run consists of, as far as its config says: what a calibrated step time has to share with it."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any

# Whole, and without their fractions (a rate or a threshold changes what is computed, not how much of it).
WHOLE = ("model", "dataset", "batch_size", "accumulation", "noise", "skip", "compile", "deterministic")
COUNTS = ("method", "optimizer")
_WORD = re.compile(r"[\w.]+")


def work(config: Mapping[str, Any]) -> str:
    """12 hexadecimal digits of the network, the data, how the batch is cut, and the counts and words of the method.

    Collected files hide texts that could be a path, so such texts do not count.
    """
    counted = {key: _kept(config.get(key), True) for key in WHOLE}
    for key in COUNTS:
        counted[key] = _kept({k: v for k, v in (config.get(key) or {}).items() if k != "tuning"}, False)
    return hashlib.sha256(json.dumps(counted, sort_keys=True).encode()).hexdigest()[:12]


def _kept(node: Any, fractions: bool) -> Any:
    if isinstance(node, Mapping):
        return {str(key): _kept(value, fractions) for key, value in node.items()}
    if isinstance(node, list | tuple):
        return [_kept(value, fractions) for value in node]
    if isinstance(node, float):
        return node if fractions else "a number"
    return node if not isinstance(node, str) or _WORD.fullmatch(node) else ""
