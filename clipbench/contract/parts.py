"""The parts of a method, and its τ: the numbers beyond which a rule clips, so that at ∞ it clips nothing."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from clipbench.clipping import MixClip, NoClip
from clipbench.config.targets import target_of
from clipbench.estimators import Batch
from clipbench.per_sample import AdaptiveWeight, AutomaticWeight, NormalizedWeight

Place = tuple[str | int, ...]
# What the package's rules call their τ. A class with another name for it lists its own in a class attribute `taus`.
NAMES = ("threshold", "alpha", "clipping", "relative", "absolute", "score", "most", "factor")
# Rules whose τ is a scale or one of two parts: at ∞ they are by definition not plain SGD. A class outside the package
# says so by a class attribute `identity_at_infinity = False`.
SCALES = (AdaptiveWeight, AutomaticWeight, MixClip, NormalizedWeight)
BATCH = {"_target_": "clipbench.estimators.Batch"}
NO_CLIP = {"_target_": "clipbench.clipping.NoClip"}


def taus(method: Mapping[str, Any]) -> list[Place]:
    """The places of the options that are τ, in the order of the config; empty for a rule without any."""
    return [
        (*place, key)
        for place, node in nodes(method)
        for key in node
        if key in getattr(_owner(node["_target_"]), "taus", NAMES) and _is_number(node[key])
    ]


def scales(method: Mapping[str, Any]) -> bool:
    """Whether some rule of the method says that it is no identity at τ = ∞."""
    owners = [_owner(node["_target_"]) for _, node in nodes(method)]
    return any(owner in SCALES or not getattr(owner, "identity_at_infinity", True) for owner in owners)


def parts(method: Mapping[str, Any]) -> list[Place]:
    """The places of the method's parts: estimator, clipper, update, and the clippers within them."""
    return [place for place, _ in nodes(method) if _is_part(place)]


def part_of(tau: Place) -> Place:
    """The innermost part that a τ belongs to."""
    return next(tau[:end] for end in range(len(tau) - 1, 0, -1) if _is_part(tau[:end]))


def _is_part(place: Place) -> bool:
    if len(place) == 1 and place[0] == "estimator":
        return True
    return place[-1] in ("clipper", "update") or (len(place) > 1 and place[-2] == "clippers")


def is_plain(node: Mapping[str, Any]) -> bool:
    """Whether a part is the one of plain SGD."""
    return _owner(node["_target_"]) in (Batch, NoClip)


def without(method: Mapping[str, Any], places: Iterable[Place]) -> dict[str, Any]:
    """The method with some of its parts replaced by those of plain SGD."""
    plain = {place: BATCH if place == ("estimator",) else NO_CLIP for place in places}
    inner = {place for place in plain if any(place != other and place[: len(other)] == other for other in plain)}
    return at(method, {place: dict(node) for place, node in plain.items() if place not in inner})


def at(method: Mapping[str, Any], values: Mapping[Place, Any]) -> dict[str, Any]:
    """A copy of the method's config with other values at some places."""
    found = copy.deepcopy(dict(method))
    for place, value in values.items():
        node: Any = found
        for key in place[:-1]:
            node = node[key]
        node[place[-1]] = value
    return found


def nodes(node: Any, place: Place = ()) -> Iterator[tuple[Place, Mapping[str, Any]]]:
    """Every node with a `_target_` of a method's config, and where it is; `tuning` is no part of the method."""
    if isinstance(node, list):
        for index, value in enumerate(node):
            yield from nodes(value, (*place, index))
    if isinstance(node, Mapping):
        if "_target_" in node:
            yield place, node
        for key, value in node.items():
            if place or key != "tuning":
                yield from nodes(value, (*place, key))


def _owner(target: str) -> Any:
    """The class of a `_target_`, which may name one of its constructors (`SpectralClip.for_model`)."""
    found = target_of(target).build
    return found if isinstance(found, type) else getattr(found, "__self__", found)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
