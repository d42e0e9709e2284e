"""What stands where: a clipper where a clipper stands, a model where a model stands.

The place of a group's object is in the table below; the place of what is built for an argument is that argument's
annotation. A target is judged before it is called, by its class or by the annotation of what it returns, and what it
returned is judged again.
"""

from __future__ import annotations

import collections.abc
import inspect
import pkgutil
import types
import typing
from typing import Annotated, Any

# By name, not imported: what is named here is no part of the code that a run reaches, unless its targets reach it.
PLACES = {
    "model": "torch.nn.Module",
    "dataset": "clipbench.data.base.Dataset",
    "method.estimator": "clipbench.estimators.base.Estimator",
    "method.clipper": "clipbench.clipping.base.Clipper",
    "method.update": "clipbench.clipping.base.Clipper",
    "optimizer": "clipbench.training.optimizers.base.Optimizer",
    "schedule": "clipbench.training.schedules.Schedule",
    "noise": "clipbench.training.noise.Noise",
    "study": "clipbench.studies.base.Study",
    "logger": "clipbench.tracking.tracker.Tracker",
}


def place(path: str) -> Any:
    """The type of what a group's node builds, Any for a path that is no group's."""
    return pkgutil.resolve_name(PLACES[path]) if path in PLACES else Any


def element(hint: Any) -> Any:
    """The type of an element of a list that an argument annotated `hint` takes."""
    for part in _parts(hint):
        if typing.get_origin(part) is not None and typing.get_args(part):
            return typing.get_args(part)[0]
    return Any


def made_by(found: Any, hints: dict[str, Any]) -> Any:
    """The type of what a class or function returns; Any where it does not say."""
    if inspect.isclass(found):
        return found
    returned = hints.get("return", Any)
    owner = getattr(found, "__self__", None)
    return owner if returned is typing.Self and inspect.isclass(owner) else returned


def could_be(made: Any, hint: Any) -> bool:
    """Whether what is of type `made` can stand where `hint` is wanted; True where either does not say."""
    if made is Any or hint is Any:
        return True
    return all(any(_is_a(one, part) for part in _parts(hint)) for one in _parts(made))


def _is_a(made: Any, wanted: Any) -> bool:
    kind = typing.get_origin(made) or made
    if not inspect.isclass(kind):
        return True
    if typing.get_origin(wanted) is collections.abc.Callable:
        return _offers(kind, "__call__")
    wanted = typing.get_origin(wanted) or wanted
    if not inspect.isclass(wanted):
        return wanted is Any
    if typing.is_typeddict(wanted) or not _is_protocol(wanted):
        return issubclass(kind, wanted)
    return wanted in kind.__mro__ or all(_offers(kind, name) for name in _members(wanted, values=False))


def fits(value: Any, hint: Any) -> bool:
    """Whether a built object can stand where `hint` is wanted."""
    if not could_be(type(value), hint):
        return False
    wanted = [part for part in _parts(hint) if inspect.isclass(part) and _is_protocol(part)]
    others = [part for part in _parts(hint) if part not in wanted and _is_a(type(value), part)]
    return bool(others) or not wanted or any(_has(value, part) for part in wanted)


def called(hint: Any) -> str:
    """What a place wants, in a word: "a Clipper", "a number or a Threshold"."""
    names = {float: "number", int: "whole number", str: "text", bool: "true or false"}
    found = []
    for part in _parts(hint):
        name = names.get(part, getattr(part, "__name__", str(part)))
        found.append(f"an {name}" if name[0] in "AEIOU" else f"a {name}")
    return " or ".join(dict.fromkeys(found))


def _offers(kind: type, name: str) -> bool:
    """Whether objects of a class have a method; the class itself can always be called."""
    return any(name in vars(base) for base in kind.__mro__)


def _has(value: Any, protocol: type) -> bool:
    return all(hasattr(value, name) for name in _members(protocol, values=True))


def _members(protocol: type, values: bool) -> set[str]:
    """What a protocol asks for: its methods, and with `values` the attributes too, which a class need not show."""
    names: set[str] = set()
    for base in protocol.__mro__:
        if base in (object, typing.Generic, typing.Protocol):
            continue
        own = {name: value for name, value in vars(base).items() if not name.startswith("_") or name == "__call__"}
        names |= {name for name, value in own.items() if values or inspect.isfunction(value)}
        names |= set(inspect.get_annotations(base)) if values else set()
    return names


def _is_protocol(kind: type) -> bool:
    return bool(getattr(kind, "_is_protocol", False))


def _parts(hint: Any) -> list[Any]:
    """The branches of a union without None, or the one type."""
    if typing.get_origin(hint) is Annotated:
        return _parts(typing.get_args(hint)[0])
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return [part for one in typing.get_args(hint) if one is not type(None) for part in _parts(one)]
    return [hint]
