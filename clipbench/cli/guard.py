"""Hydra's own node builds launchers, callbacks and log handlers by name, before we see a config: files may not set it.

What stands there is clipbench's own or typed on the command line; an experiment's file sets `hydra.sweeper.params`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from clipbench.cli.compose import compose_node
from clipbench.cli.outside import folders
from clipbench.errors import ConfigError

# What says how this command line was composed, and the sweep's parameters.
FREE = ("overrides", "runtime", "searchpath", "job.override_dirname", "sweeper.params")


def guard(words: Sequence[str]) -> None:
    """Raise ConfigError where a file from outside changes Hydra's node."""
    if not folders():
        return
    parsed = OverridesParser.create().parse_overrides(list(words))
    single = [word for word, override in zip(words, parsed, strict=True) if not override.is_sweep_override()]
    typed = [word for word in single if word.lstrip("+~").startswith(("hydra.", "hydra/"))]
    expected, found = _settings(compose_node(typed)), _settings(compose_node(single))
    for option in {**expected, **found}:
        if expected.get(option) != found.get(option) and not any(f"{option}.".startswith(f"{free}.") for free in FREE):
            raise ConfigError(
                f"hydra.{option} may be given on the command line only, got {found.get(option)} from a file"
            )


def _settings(config: DictConfig) -> dict[str, Any]:
    """Hydra's node, flattened, not resolved."""
    return _flat(OmegaConf.to_container(config.hydra, resolve=False), "")


def _flat(node: Any, above: str) -> dict[str, Any]:
    if not isinstance(node, Mapping) or not node:
        return {above: node}
    found: dict[str, Any] = {}
    for key, value in node.items():
        found |= _flat(value, f"{above}.{key}" if above else str(key))
    return found
