"""Which runs may go together: those that share everything but numbers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from clipbench.runs.request import Request

# Below these, numbers may differ from member to member; texts, switches and everything elsewhere are the same for all.
FREE = ("seed", "trial", "optimizer", "method", "schedule", "noise", "data.split_seed")
HIDDEN = ("data.root", "paths.results", "paths.tuned")  # where a resumed batch follows the new command
UNSEEN = ("method.tuning", "tuning", "calibration", "tuned")  # how a tuning goes about it: no run depends on that


def why_alone(request: Request) -> str:
    """Why this run goes alone; empty where it may go together with others."""
    options = request.options
    if request.study:
        return "a study trains no network"
    if options.compile:
        return "compile=true compiles one model"
    if options.precision == "bf16":
        return "precision=bf16 is autocast's, which batched products do not go through"
    if "_target_" in (request.config.get("logger") or {}):
        return "a logger follows one run at a time"
    if read := [path for path in options.environment if path not in HIDDEN]:
        return f"{read[0]} is of the environment, which a batch does not keep"
    return ""


def kin(request: Request) -> str:
    """What a run shares with those it may go together with."""
    return json.dumps(_without_numbers(request.config, ""), sort_keys=True, default=str)


def _without_numbers(node: Any, path: str) -> Any:
    if isinstance(node, Mapping):
        inner = {str(key): f"{path}.{key}" if path else str(key) for key in node}
        return {key: _without_numbers(node[key], at) for key, at in inner.items() if at not in UNSEEN}
    if isinstance(node, list):
        return [_without_numbers(each, path) for each in node]
    free = any(path == name or path.startswith(f"{name}.") for name in FREE)
    return "a number" if free and isinstance(node, int | float) and not isinstance(node, bool) else node


def groups(requests: Sequence[Request], size: int) -> list[list[Request]]:
    """Batches of at most `size` runs that may go together, in the order in which they come; none of one run alone."""
    by_kin: dict[str, list[Request]] = {}
    for request in requests:
        if not why_alone(request):
            by_kin.setdefault(kin(request), []).append(request)
    rounds: dict[int, list[list[Request]]] = {}  # the first batches of all kinds come before the second ones
    for members in by_kin.values():
        count = -(-len(members) // size)
        even = -(-len(members) // count)  # 33 runs of at most 32 are 17 and 16, not 32 and 1
        for place in range(count):
            rounds.setdefault(place, []).append(members[place * even : (place + 1) * even])
    return [members for place in sorted(rounds) for members in rounds[place] if len(members) > 1]
