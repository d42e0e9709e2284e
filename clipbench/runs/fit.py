"""Building what a config asks for: what does not fit together is the user's, and is said with the option's path."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from clipbench.config import schema
from clipbench.errors import ConfigError
from clipbench.training import setup
from clipbench.training.setup import Setup


def build(config: Mapping[str, Any], options: schema.Options) -> Setup:
    """`clipbench.training.setup.build`, with ConfigError for all that does not fit.

    Data that are read learn only then how long they are, and a schedule only here how long the run is.
    """
    try:
        made = setup.build(config, options)
    except ConfigError:
        raise
    except ValueError as error:
        if placed := place(str(error), config):
            raise ConfigError(placed) from error
        raise
    check_schedule(made)
    return made


def check_schedule(made: Setup) -> None:
    """ConfigError where the warm-up does not end within the run, which would never see its full rate."""
    warmup = getattr(made.schedule, "warmup", 0)
    if warmup > made.steps:
        raise ConfigError(f"schedule.warmup must be <= {made.steps}, the steps of the run, got {warmup}")


def place(message: str, config: Mapping[str, Any]) -> str | None:
    """A check's message with the option's path in front; None where it speaks of no option of the data."""
    found = re.match(r"(\w+)(?:\[\d+\])? must ", message)
    return f"dataset.{message}" if found and found[1] in (config.get("dataset") or {}) else None
