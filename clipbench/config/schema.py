"""The typed configuration as a whole: its groups, what a run uses of them, and the check of everything in it.

Two sources say what is allowed, and both are the code itself. The top-level options are the fields of `Options`. The
arguments below a `_target_` are those of the target's annotated signature (`targets`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from clipbench.config.options import Options, complaint, is_plain
from clipbench.config.targets import accepts, adapter, check_target, target_of
from clipbench.errors import ConfigError

__all__ = ["GROUPS", "TRAINING", "Options", "canonical", "check", "check_target", "is_study", "reached", "used"]
GROUPS = ("model", "dataset", "method", "optimizer", "schedule", "noise", "study", "logger")
# Options that say nothing to a study without a network.
TRAINING = frozenset({
    "steps", "epochs", "batch_size", "accumulation", "eval_every", "eval_batch_size", "checkpoint_every", "log_every",
    "log_layers", "precision", "compile",
})  # fmt: skip
EMPTY = ("noise", "study", "logger")  # groups that may be none


def check(config: Mapping[str, Any]) -> Options:
    """The top-level options of a resolved config, checked, and every `_target_`'s arguments.

    Raises ConfigError with one line that names the option, its value and what is allowed.
    """
    try:
        options = Options.model_validate({k: v for k, v in config.items() if k not in GROUPS})
    except ValidationError as error:
        raise ConfigError(complaint(error, "")) from None
    if "experiment" in options.environment:  # folders, files and tables are called by it
        raise ConfigError(f"experiment must be written out, got {options.experiment}")
    if options.steps is None and options.epochs is None:
        raise ConfigError("steps must be a number >= 1 where epochs is null, got null")
    for group in reached(config):
        _check_shape(config.get(group), group)
        check_target(config[group], group)
    return options


def is_study(config: Mapping[str, Any]) -> bool:
    """Whether the config asks for a study, which trains no network."""
    return "_target_" in (config.get("study") or {})


def reached(config: Mapping[str, Any]) -> list[str]:
    """The groups that the run of a config uses: a training no study, and a study a network where it takes a `setup`."""
    if not is_study(config):
        return [group for group in GROUPS if group != "study"]
    return list(GROUPS) if accepts(config["study"]["_target_"], "setup") else ["study", "logger"]


def used(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config without what its run cannot use: no part of its record or its identity."""
    groups = reached(config)
    unused = set(GROUPS) - set(groups)
    if "model" not in groups:
        unused |= TRAINING
    return {key: value for key, value in config.items() if key not in unused}


def canonical(config: Mapping[str, Any], options: Options) -> dict[str, Any]:
    """The config with its numbers in their options' own types (lr=1 becomes 1.0), so that one run has one id.

    What does not fit its type is left as it is, for `check` to name.
    """
    typed = options.model_dump()
    return {key: _canonical(value) if key in GROUPS else typed[key] for key, value in config.items()}


def _canonical(node: Any) -> Any:
    if not isinstance(node, Mapping):
        return node
    found = {key: _canonical(value) for key, value in node.items()}
    if "_target_" not in node:
        return found
    try:
        hints = target_of(node["_target_"]).hints
    except ConfigError:
        return found
    for key, value in found.items():
        if key in hints and isinstance(value, int | float | list) and not isinstance(value, bool):
            try:
                found[key] = adapter(hints[key]).validate_python(value)
            except ValidationError:
                continue
    return found


def _check_shape(node: Any, group: str) -> None:
    """A group is a node with a `_target_`; a method holds two or three of them; noise and logger may be none."""
    if not isinstance(node, Mapping):
        raise ConfigError(f"{group} must be a group with a _target_, got {node}")
    if "name" in node and not is_plain(node["name"]):
        raise ConfigError(f"{group}.name must be a plain name, as of a file, got {node['name']}")
    if group == "method":
        for key in ("estimator", "clipper", *(["update"] if "update" in node else [])):
            _check_shape(node.get(key), f"{group}.{key}")
        for key in set(node) - {"name", "estimator", "clipper", "update", "tuning"}:
            raise ConfigError(f"method.{key} is not an option (allowed: name, estimator, clipper, update)")
    elif "_target_" not in node and not (group in EMPTY and set(node) <= {"name"}):
        raise ConfigError(f"{group} must have a _target_, got {dict(node)}")
