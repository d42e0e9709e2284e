"""Building the object of a `_target_` node."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from clipbench.config.places import called, could_be, element, fits, place
from clipbench.config.targets import Target, is_label, target_of
from clipbench.errors import ConfigError


def instantiate(node: Mapping[str, Any], path: str, /, **given: Any) -> Any:
    """Build the object of a `_target_` node, its inner nodes first.

    `given` holds what the config cannot (the model, the data's spec); each target gets those of them that its
    signature names. A ValueError whose message starts with an argument's name becomes a ConfigError with the
    option's path in front; so does what does not fit the place at `path` (no clipper where a clipper stands).
    """
    return _node(node, path, place(path), given)


def _node(node: Mapping[str, Any], path: str, wanted: Any, given: Mapping[str, Any]) -> Any:
    name = node["_target_"]
    target = target_of(name, path)
    misfit = f"{path} must be {called(wanted)}, got {name}"
    if not could_be(target.made, wanted):
        raise ConfigError(misfit)
    arguments = {
        key: _value(value, f"{path}.{key}", target.hints.get(key, Any), given)
        for key, value in node.items()
        if key != "_target_" and not is_label(key, target)
    }
    arguments |= {key: value for key, value in given.items() if key in target.parameters and key not in arguments}
    _complete(target, arguments, name, path)
    try:
        built = target.build(**arguments)
    except ValueError as error:
        first_word = str(error).split(" ", 1)[0].split("[", 1)[0]
        prefix = f"{path}." if first_word in target.parameters else ""
        raise ConfigError(f"{prefix}{error}") from error
    if not fits(built, wanted):
        raise ConfigError(f"{misfit} (which made a {type(built).__name__})")
    return built


def _value(value: Any, path: str, wanted: Any, given: Mapping[str, Any]) -> Any:
    """A `_target_` node, or a list that holds some, built; anything else as it is."""
    if isinstance(value, list):
        return [_value(part, f"{path}[{number}]", element(wanted), given) for number, part in enumerate(value)]
    return _node(value, path, wanted, given) if isinstance(value, Mapping) and "_target_" in value else value


def _complete(target: Target, arguments: Mapping[str, Any], name: str, path: str) -> None:
    for key, parameter in target.parameters.items():
        if parameter.default is parameter.empty and key not in arguments:
            raise ConfigError(f"{path}.{key} must be given for {name}")
