"""What does not fit together is the user's, and is said with the option's path, however late it is found out."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from clipbench.config import schema
from clipbench.errors import ConfigError

if TYPE_CHECKING:
    from clipbench.training.setup import Setup


def build(config: Mapping[str, Any], options: schema.Options) -> Setup:
    """`clipbench.training.setup.build`, with ConfigError for all that does not fit."""
    from clipbench.training import setup

    with told(config):
        made = setup.build(config, options)
    check_schedule(made)
    return made


@contextmanager
def told(config: Mapping[str, Any]) -> Iterator[None]:
    """For the block, a check's ValueError of an option of the data is a ConfigError with the option's path in front.

    How long data are is known only where they are read, after the dataset was built from its options.
    """
    try:
        yield
    except ConfigError:
        raise
    except ValueError as error:
        found = re.match(r"(\w+)(?:\[\d+\])? must ", str(error))
        if found and found[1] in (config.get("dataset") or {}):
            raise ConfigError(f"dataset.{error}") from error
        raise


def check_schedule(made: Setup) -> None:
    """ConfigError where the warm-up does not end within the run, which would never see its full rate."""
    warmup = getattr(made.schedule, "warmup", 0)
    if warmup > made.steps:
        raise ConfigError(f"schedule.warmup must be <= {made.steps}, the steps of the run, got {warmup}")
