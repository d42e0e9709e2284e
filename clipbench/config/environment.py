"""Values of environment variables: a run uses them, a record keeps the reference `${oc.env:NAME}` in their place."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.resolvers import oc

SIGN = "${oc.env:"
Path = tuple[str | int, ...]


def references(config: DictConfig, plain: Mapping[str, Any]) -> dict[str, Any]:
    """Option → what to show instead, for every option of `plain` (`config`, resolved) that the environment has set.

    However the value came there (through other options, as a part of a text), the config is resolved once more with
    each variable's reference as its value, and what shows one then is the environment's.
    """
    with _signed():
        shown = OmegaConf.to_container(config, resolve=True)
    return {".".join(map(str, path)): sign for path, sign in _signs(plain, shown, ())}


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


@contextmanager
def _signed() -> Iterator[None]:
    """`oc.env` gives the reference of a variable that is set; a default stays what it is."""

    def sign(key: str, *default: Any) -> Any:
        return f"{SIGN}{key}}}" if key in os.environ else oc.env(key, *default)

    OmegaConf.register_new_resolver("oc.env", sign, replace=True)
    try:
        yield
    finally:
        OmegaConf.register_new_resolver("oc.env", oc.env, replace=True)
