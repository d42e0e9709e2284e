"""Values of environment variables: a run uses them; a record, and what is said of an error, has the reference
`${oc.env:NAME}` in their place.

What a config took from the environment is remembered by the process, as the environment is the process's: an error's
line is written far from the config, and may be of one that never came to be.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.resolvers import oc

SIGN = "${oc.env:"
OWN = "CLIPBENCH_"  # the package's own variables name folders, which an error's reader wants to see
Path = tuple[str | int, ...]
_NAME = re.compile(r"\$\{oc\.env:([^},]+)")
# Words and numbers that mean something in any line: they stand for a variable only where a line says what it got.
_COMMON = re.compile(r".{0,3}|true|false|null|none|[-+.\d_]+(e[-+]?\d+)?", re.IGNORECASE | re.DOTALL)
# text → its reference and the variables it is of, with their values at the time
_taken: dict[str, tuple[str, dict[str, str]]] = {}


def references(config: DictConfig, plain: Mapping[str, Any]) -> dict[str, Any]:
    """Option → what to show instead, for every option of `plain` (`config`, resolved) that the environment has set.

    However the value came there (through other options, as a part of a text), the config is resolved once more with
    each variable's reference as its value, and what shows one then is the environment's.
    """
    with _signed():
        shown = OmegaConf.to_container(config, resolve=True)
    found = list(_signs(plain, shown, ()))
    for path, sign in found:
        value: Any = plain
        for key in path:
            value = value[key]
        for leaf in _leaves(value):
            _note(leaf, str(sign))
    return {".".join(map(str, path)): sign for path, sign in found}


def hidden(text: str) -> str:
    """A line about an error with references in the place of values that a config took from the environment."""
    found = {
        form: reference
        for value, (reference, variables) in _taken.items()
        if all(os.environ.get(name) == kept for name, kept in variables.items())
        for form in (value, repr(value)[1:-1])
    }
    said, got, given = text.rpartition(", got ")
    rare = {value: reference for value, reference in found.items() if not _COMMON.fullmatch(value)}
    return _replaced(said, rare) + got + _replaced(given, found) if got else _replaced(text, found)


def _replaced(text: str, references: Mapping[str, str]) -> str:
    """Longer values first, each as whole words."""
    if not references:
        return text
    values = "|".join(re.escape(value) for value in sorted(references, key=len, reverse=True))
    return re.sub(rf"(?<!\w)(?:{values})(?!\w)", lambda match: references[match[0]], text)


def _leaves(value: Any) -> Iterator[str]:
    """A value and, of a node, all that is in it, as errors show them."""
    yield str(value)
    for part in value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ():
        yield from _leaves(part)


def _note(value: str, reference: str) -> None:
    variables = {name: os.environ[name] for name in _NAME.findall(reference) if name in os.environ}
    if value and variables and not any(name.startswith(OWN) for name in variables):
        _taken[value] = (reference, variables)


def referring(config: Mapping[str, Any], environment: Mapping[str, Any]) -> dict[str, Any]:
    """The config with the references of `environment` (option → reference) in the place of the values."""
    return {key: _laid(value, environment, str(key)) for key, value in config.items()}


def _laid(value: Any, environment: Mapping[str, Any], path: str) -> Any:
    if path in environment:
        return environment[path]
    if isinstance(value, Mapping):
        return {key: _laid(inner, environment, f"{path}.{key}") for key, inner in value.items()}
    if isinstance(value, list):
        return [_laid(inner, environment, f"{path}.{place}") for place, inner in enumerate(value)]
    return value


def _signs(plain: Any, shown: Any, path: Path) -> Iterator[tuple[Path, Any]]:
    """The smallest parts in which a reference stands now; a whole node where its layout was the environment's."""
    if isinstance(plain, Mapping) and isinstance(shown, Mapping) and set(plain) == set(shown):
        for key in plain:
            yield from _signs(plain[key], shown[key], (*path, key))
    elif isinstance(plain, list) and isinstance(shown, list) and len(plain) == len(shown):
        for place, (one, other) in enumerate(zip(plain, shown, strict=True)):
            yield from _signs(one, other, (*path, place))
    elif SIGN in repr(shown):
        yield path, shown


def read(key: str, *default: Any) -> Any:
    """OmegaConf's `oc.env`, which notes what it gives."""
    if key in os.environ:
        _note(os.environ[key], f"{SIGN}{key}}}")
    return oc.env(key, *default)


@contextmanager
def _signed() -> Iterator[None]:
    """`oc.env` gives the reference of a variable that is set; a default stays what it is."""

    def sign(key: str, *default: Any) -> Any:
        return f"{SIGN}{key}}}" if key in os.environ else oc.env(key, *default)

    OmegaConf.register_new_resolver("oc.env", sign, replace=True)
    try:
        yield
    finally:
        OmegaConf.register_new_resolver("oc.env", read, replace=True)
