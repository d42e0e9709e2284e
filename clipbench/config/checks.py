"""Checks of constructor arguments: each raises ValueError or returns nothing.

The message is "<argument> must be <what>, got <value>". It starts with the argument's own name, so that the
configuration layer can put the option's path before it.
"""

from __future__ import annotations

import math
from collections.abc import Collection


def require(holds: bool, argument: str, what: str, value: object) -> None:
    """Raise ValueError unless `holds`."""
    if not holds:
        raise ValueError(f"{argument} must be {what}, got {value}")


def positive(argument: str, value: float) -> None:
    """A finite number > 0 (NaN is refused)."""
    require(math.isfinite(value) and value > 0, argument, "finite and > 0", value)


def non_negative(argument: str, value: float) -> None:
    """A finite number >= 0 (NaN is refused)."""
    require(math.isfinite(value) and value >= 0, argument, "finite and >= 0", value)


def fraction(argument: str, value: float) -> None:
    """A number in [0, 1), as momenta, betas, dropout and label smoothing are."""
    require(0 <= value < 1, argument, "in [0, 1)", value)


def at_least(argument: str, value: int, least: int) -> None:
    """A whole number >= `least`."""
    require(value >= least, argument, f">= {least}", value)


def one_of(argument: str, value: object, allowed: Collection[object]) -> None:
    """One of a few named choices."""
    require(value in allowed, argument, "one of " + ", ".join(map(str, allowed)), value)
