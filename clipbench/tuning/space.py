"""Search spaces: which options a method's trials vary, within which ranges, and the values at a point of [0, 1)ᵈ.

A space is laid out as the config it applies to. A leaf is a range, `{low: 0.01, high: 1, log: true}`, or a value
that is fixed for the trials:

    tuning:
      ours:
        shared: {optimizer: {lr: {low: 0.01, high: 1, log: true}}}       # dimension 1 of every method
        methods: {norm_clip: {method: {clipper: {threshold: {low: 0.1, high: 10, log: true}}}}}

A method's own YAML may hold ranges for its own options (`tuning:` beside `clipper:`); the experiment's come over them.
A threshold's leaf `{measured: true}` is a range that a short reference run finds (see `reference.py`): the values that
clip 98 to 2 % of what the method compares with it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from clipbench.errors import ConfigError

TUNED = ("optimizer", "method", "schedule")  # nothing that changes the work of a step or the number of steps


class Range(NamedTuple):
    """An option and its interval; `log` spreads the values evenly over the logarithm."""

    path: str
    low: float
    high: float
    log: bool

    def at(self, position: float) -> float:
        """The value at `position` in [0, 1), to four significant digits."""
        if self.log:
            value = self.low * (self.high / self.low) ** position
        else:
            value = self.low + (self.high - self.low) * position
        return min(max(float(f"{value:.4g}"), self.low), self.high)


class ToMeasure(NamedTuple):
    """A threshold whose range the reference run has yet to find."""

    path: str


class Fixed(NamedTuple):
    """An option and its value in every trial."""

    path: str
    value: Any


class Space(NamedTuple):
    """The ranges of one method, those shared by all methods first, its fixed values, and what is to be measured."""

    ranges: tuple[Range, ...]
    fixed: tuple[Fixed, ...]
    to_measure: tuple[ToMeasure, ...] = ()

    def paths(self) -> set[str]:
        """The options that a trial sets."""
        return {r.path for r in self.ranges} | {f.path for f in self.fixed} | {m.path for m in self.to_measure}

    def with_measured(self, found: Mapping[str, tuple[float, float]]) -> Space:
        """The space with the ranges (path → low, high) that the reference run has found, after the others."""
        ranges = (Range(path, *found[path], log=True) for (path,) in self.to_measure)
        return Space((*self.ranges, *ranges), self.fixed)

    def middle(self) -> dict[str, Any]:
        """Every range at its middle, and the fixed values."""
        return {r.path: r.at(0.5) for r in self.ranges} | {f.path: f.value for f in self.fixed}

    def describe(self) -> str:
        """One line: every option with its interval or value."""
        shown = [f"{r.path} {r.low:g} … {r.high:g}{' (log)' * r.log}" for r in self.ranges]
        to_come = [f"{m.path} measured" for m in self.to_measure]
        return ", ".join([*shown, *to_come, *(f"{f.path} = {f.value}" for f in self.fixed)])


def space(config: Mapping[str, Any], protocol: str) -> Space:
    """The space of the config's method under a protocol. Raises ConfigError, naming the option, for a bad one."""
    node = config["tuning"][protocol]
    name = str(config["method"]["name"])
    if protocol == "paper":
        if node is None or name not in node["methods"]:
            stated = ", ".join(sorted(node["methods"])) if node else "none"
            raise ConfigError(
                f"tuning.paper must state the ranges of {name} for protocol=paper (methods it states: {stated})"
            )
        own: Mapping[str, Any] = {}
    else:
        own = {"method": config["method"]["tuning"]} if config["method"].get("tuning") else {}
    merged = _merge(_merge(node["shared"], own), node["methods"].get(name) or {})
    leaves = list(_leaves(merged, "", f"tuning.{protocol}"))
    ranges = tuple(leaf for leaf in leaves if isinstance(leaf, Range))
    to_measure = tuple(leaf for leaf in leaves if isinstance(leaf, ToMeasure))
    if not ranges:
        raise ConfigError(f"tuning.{protocol} must hold at least one range for {name}, got none")
    return Space(ranges, tuple(leaf for leaf in leaves if isinstance(leaf, Fixed)), to_measure)


def _merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`over` laid over `base`; a leaf replaces a leaf, and null takes one away."""
    merged = dict(base)
    for key, value in over.items():
        below = merged.get(key)
        if isinstance(value, Mapping) and isinstance(below, Mapping) and not _is_range(value) and not _is_range(below):
            merged[key] = _merge(below, value)
        else:
            merged[key] = value
    return merged


def _is_range(node: Any) -> bool:
    return isinstance(node, Mapping) and bool({"low", "high", "measured"} & set(node))


def _leaves(node: Any, path: str, where: str) -> Iterator[Range | Fixed | ToMeasure]:
    if node is None:
        return
    if not path or (isinstance(node, Mapping) and not _is_range(node)):
        for key, value in node.items():
            if not path and key not in TUNED:
                raise ConfigError(f"{where}: {key} cannot be tuned (only what lies below {', '.join(TUNED)})")
            yield from _leaves(value, f"{path}.{key}".lstrip("."), where)
    elif _is_range(node):
        yield (
            _to_measure(node, path, f"{where}: {path}")
            if "measured" in node
            else _range(node, path, f"{where}: {path}")
        )
    else:
        yield Fixed(path, node)


def _to_measure(node: Mapping[str, Any], path: str, where: str) -> ToMeasure:
    if node != {"measured": True}:
        raise ConfigError(f"{where}.measured must be true and stand alone, got {dict(node)}")
    if "threshold" not in path.split("."):
        raise ConfigError(f"{where} cannot be measured (only a threshold, or what lies below one)")
    return ToMeasure(path)


def _range(node: Mapping[str, Any], path: str, where: str) -> Range:
    for key in set(node) - {"low", "high", "log"}:
        raise ConfigError(f"{where}.{key} is not an option of a range (allowed: low, high, log)")
    low, high, log = _number(node, "low", where), _number(node, "high", where), node.get("log", False)
    if not isinstance(log, bool):
        raise ConfigError(f"{where}.log must be true or false, got {log}")
    if not low < high:
        raise ConfigError(f"{where}.low must be < high, got {low:g} and {high:g}")
    if log and low <= 0:
        raise ConfigError(f"{where}.low must be > 0 for a logarithmic range, got {low:g}")
    return Range(path, low, high, log)


def _number(node: Mapping[str, Any], name: str, where: str) -> float:
    value = node.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ConfigError(f"{where}.{name} must be a finite number, got {'null' if value is None else value}")
    return float(value)
