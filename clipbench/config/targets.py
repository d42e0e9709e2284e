"""From a `_target_`'s name to the class or function, and the check of its arguments against its annotations.

Names of others are not even imported (see `trust`), and what a target makes must fit the place it stands in (see
`places`). What a type cannot say of an argument (a threshold above 0) the constructor checks.
"""

from __future__ import annotations

import functools
import inspect
import math
import pkgutil
import typing
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from typing import Any, Literal, NamedTuple

from pydantic import ConfigDict, TypeAdapter, ValidationError

from clipbench.config.options import complaint
from clipbench.config.places import called, could_be, element, made_by, place
from clipbench.config.trust import OWN, trusted
from clipbench.errors import ConfigError

UNNAMED = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD, inspect.Parameter.POSITIONAL_ONLY)


class Target(NamedTuple):
    """What a `_target_` names: `build` is called with keywords; `parameters` and `hints` are of those, by name."""

    build: Callable[..., Any]
    parameters: dict[str, inspect.Parameter]
    hints: dict[str, Any]
    open_ended: bool
    made: Any


def target_of(name: Any, path: str = "") -> Target:
    """The target called `name`. Raises ConfigError, with the option's path in front, where a config may not name it."""
    option = f"{path}._target_" if path else "_target_"
    if not isinstance(name, str):
        raise ConfigError(f"{option} must be the name of a class or function, got {name}")
    if not trusted(name):
        raise ConfigError(
            f"{option} must be of clipbench, of a package with an entry point clipbench.*, or of one given by "
            f"--allow PACKAGE, got {name}"
        )
    try:
        return _found(name)
    except ConfigError as error:
        raise ConfigError(f"{option} {error}") from None


@functools.cache
def _found(name: str) -> Target:
    try:
        found = pkgutil.resolve_name(name)
        if not callable(found):
            raise TypeError("it cannot be called")
        signature = inspect.signature(found)
    except Exception as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ConfigError(f"must be the name of a class or function, got {name} ({reason})") from None
    home = str(getattr(found, "__module__", ""))
    # A module of ours imports others' functions: under our name they are others' all the same.
    if name.startswith(f"{OWN}.") and not home.startswith(f"{OWN}."):
        raise ConfigError(f"must be defined in {OWN}, got {name} (of {home or 'no module'})")
    kinds = {parameter.kind for parameter in signature.parameters.values()}
    parameters = {key: value for key, value in signature.parameters.items() if value.kind not in UNNAMED}
    hints = _hints(found.__init__ if inspect.isclass(found) else found)
    return Target(found, parameters, hints, inspect.Parameter.VAR_KEYWORD in kinds, made_by(found, hints))


def _hints(function: Any) -> dict[str, Any]:
    try:
        return typing.get_type_hints(function, include_extras=True)
    except (NameError, TypeError, AttributeError):  # annotations that hold for type checkers alone check nothing here
        return {}


def accepts(name: str, argument: str) -> bool:
    """Whether the target's signature has `argument`."""
    return argument in target_of(name).parameters


def check_target(node: Any, path: str, hint: Any = None) -> None:
    """Names and types of what is below `path`, against the annotations of the `_target_`s; recursive.

    `hint` is the type that is wanted at `path`, by default that of the group there. Raises ConfigError.
    """
    wanted = place(path) if hint is None else hint
    if isinstance(node, list):
        for number, part in enumerate(node):
            check_target(part, f"{path}[{number}]", element(wanted))
    if not isinstance(node, Mapping):
        return
    if "_target_" not in node:
        for key, value in node.items():
            check_target(value, f"{path}.{key}")
        return
    target = target_of(node["_target_"], path)
    if not could_be(target.made, wanted):
        raise ConfigError(f"{path} must be {called(wanted)}, got {node['_target_']}")
    for key, value in node.items():
        if key != "_target_" and not is_label(key, target):
            _check_argument(target, node["_target_"], key, value, path)


def is_label(key: str, target: Target) -> bool:
    """Whether `key` is the node's own name, which the target does not take."""
    return key == "name" and key not in target.parameters


def _check_argument(target: Target, name: str, key: str, value: Any, path: str) -> None:
    if key.startswith("_") and key.endswith("_"):
        raise ConfigError(f"{path}.{key} is not an option (a node has a _target_ and its options by name, no more)")
    if key not in target.parameters:
        if not target.open_ended:
            near = get_close_matches(key, target.parameters, n=1)
            hint = f"did you mean {path}.{near[0]}?" if near else f"allowed: {', '.join(sorted(target.parameters))}"
            raise ConfigError(f"{path}.{key} is not an option of {name} ({hint})")
        check_target(value, f"{path}.{key}", Any)
        return
    wanted = target.hints.get(key, Any)
    check_target(value, f"{path}.{key}", wanted)
    if key in target.hints and not _holds_nodes(value):
        _check_finite(value, target.parameters[key].default, f"{path}.{key}")
        _check_value(value, wanted, f"{path}.{key}")


def _holds_nodes(value: Any) -> bool:
    """Whether a value is, or is a list of, what is built from a config of its own."""
    return isinstance(value, Mapping) or (isinstance(value, list) and any(isinstance(part, Mapping) for part in value))


def _check_finite(value: Any, default: Any, path: str) -> None:
    """Numbers are finite; infinity is allowed where the signature's own default is infinite (β of PowerThreshold)."""
    if isinstance(value, float) and (math.isnan(value) or (math.isinf(value) and default != value)):
        raise ConfigError(f"{path} must be a finite number, got {value}")


def adapter(annotation: Any) -> TypeAdapter[Any]:
    """What checks a plain value against an annotation."""
    return TypeAdapter(annotation, config=ConfigDict(strict=True, arbitrary_types_allowed=True))


def _check_value(value: Any, annotation: Any, path: str) -> None:
    try:
        adapter(annotation).validate_python(value)
    except ValidationError as error:
        names = [_type_name(part) for part in typing.get_args(annotation) or (annotation,)]
        if typing.get_origin(annotation) is Literal:
            raise ConfigError(complaint(error, path)) from None
        shown = "null" if value is None else value
        raise ConfigError(f"{path} must be {' or '.join(dict.fromkeys(names))}, got {shown}") from None


def _type_name(kind: Any) -> str:
    names = {float: "a number", int: "a whole number", bool: "true or false", str: "a text", type(None): "null"}
    return names.get(kind, getattr(kind, "__name__", str(kind)))
