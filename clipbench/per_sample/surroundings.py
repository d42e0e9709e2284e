"""What a function of the user's own can see besides its gradients and tensors: a proof holds only while that stays.

The code of its backward is followed into the functions that it calls; the variables that they refer to, global,
enclosed and of their classes, are compared by value. What can change unseen, such as an object's attributes, makes
the proof hold for one step only.
"""

from __future__ import annotations

import dis
import functools
from collections.abc import Iterable, Mapping, Sequence
from types import BuiltinFunctionType, CodeType, FunctionType, ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx
from torch.overrides import get_testing_overrides

TRUSTED = frozenset({"torch", "math", "operator", "typing", "collections", "functools", "builtins", "__future__"})
"""Modules whose functions depend on their arguments alone."""
SEES_ALL = frozenset({"globals", "locals", "vars", "eval", "exec", "getattr", "__import__", "open", "input"})
"""Functions of Python's own that may look at anything."""

NOTED = frozenset({"_version", "grad", "_grad", "grad_fn", "is_leaf", "_backward_hooks", "_post_accumulate_grad_hooks"})
"""Attributes of tensors that change though values, shapes and dtypes do not."""
PACKAGES = frozenset({"", "nn", "functional", "fft", "linalg", "special", "autograd", "ops", "types"})
"""Modules of torch whose functions are operations; what others tell (settings, devices, random states) may change."""
DEVICES = frozenset({"_C", "backends", "cuda", "cpu", "xpu", "mps", "mtia", "accelerator", "amp", "random"})
"""Modules that tell of devices and settings; known by these names wherever they are taken from."""
STEADY = frozenset({"tensor", "as_tensor", "from_numpy", "is_tensor", "can_cast", "result_type", "promote_types",
                    "broadcast_shapes"})  # fmt: skip
"""Functions of torch that depend on their arguments alone, though they are no operations."""
ANOMALY = frozenset({"traceback_", "parent_"})
"""What torch notes of nodes while it looks for anomalies."""
MARKS = frozenset({"_held", "_decides", "_of_gradients", "_constant"})
"""What looking at a backward pass leaves on tensors (see `opaque`)."""


class HiddenError(Exception):
    """What code depends on cannot be compared."""


def seen_by(node: Any) -> Any:
    """What a function's backward may depend on besides its gradients and the values of tensors. Raises HiddenError."""
    noted = [(name, item) for name, item in node.metadata.items() if name not in ANOMALY]
    kept = [plain(item) for item in [*sorted(vars(node).items()), *noted]]
    return (*_asked_for(node), *kept, *_saved(node), *surroundings(type(node)))


def _asked_for(node: Any) -> list[Any]:
    """Which gradients are wanted, and what those are like that come in."""
    if any(meta.is_nested_tensor for meta in node._input_metadata):
        raise HiddenError
    return [tuple(node.needs_input_grad), *[(tuple(meta.shape), meta.dtype) for meta in node._input_metadata]]


def _saved(node: Any) -> list[Any]:
    """Shapes and strides of saved tensors."""
    if any(getattr(saved, "unpack_hook", None) is not None for saved in node._raw_saved_tensors or ()):
        raise HiddenError
    return [plain(saved) for saved in node.saved_tensors]


def surroundings(kind: type) -> list[Any]:
    """What the backward of a Function's node type can see: variables global, enclosed, and of its class.

    Its code is followed into the functions that it calls. Raises HiddenError for what can change unseen, such as an
    object's attributes.
    """
    cls = getattr(kind, "_forward_cls", kind)
    seen: set[int] = set()
    found: list[Any] = []
    for parent in cls.__mro__:
        if parent is FunctionCtx or parent.__module__.startswith("torch."):
            break
        for name, value in vars(parent).items():
            if name in ("backward", "vjp"):
                _see(value, found, seen)
                if isinstance(value, classmethod):  # it is given the class
                    _see_class(cls, found, seen)
            elif _constant(value):
                found.append((name, plain(value)))
    backward = getattr(cls, "backward", None)
    if str(getattr(backward, "__module__", "")).startswith("torch."):  # torch may have made it of another function
        _see(backward, found, seen)
    return found


def _see(value: Any, found: list[Any], seen: set[int]) -> None:
    """Add what a value that code refers to may depend on."""
    if id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, (staticmethod, classmethod)):
        value = value.__func__
    if _constant(value) or isinstance(value, Tensor):
        found.append(plain(value))
    elif _may_tell(value):
        raise HiddenError
    elif isinstance(value, FunctionType):
        _look_into(value, found, seen)
    elif isinstance(value, type):
        _see_class(value, found, seen)
    elif not _of_trusted(value):
        raise HiddenError


def _see_class(cls: type, found: list[Any], seen: set[int]) -> None:
    for parent in cls.__mro__:
        if _of_trusted(parent):
            return
        for name, value in vars(parent).items():
            if not name.startswith("__"):
                _see(value, found, seen)


def _look_into(function: Any, found: list[Any], seen: set[int]) -> None:
    """The variables of a function written in Python."""
    for part in (function.__defaults__, function.__kwdefaults__, vars(function)):
        for value in part.values() if isinstance(part, dict) else part or ():
            _see(value, found, seen)
    for cell in function.__closure__ or ():
        try:
            _see(cell.cell_contents, found, seen)
        except ValueError:  # not filled yet
            raise HiddenError from None
    scope = function.__globals__
    if str(scope.get("__name__", "")).split(".")[0] in TRUSTED:
        return
    if _imports(function.__code__) or any(_notes(chain, scope) for chain in _chains(function.__code__)):
        raise HiddenError
    for name in _names(function.__code__):
        if name in scope:
            _see(scope[name], found, seen)
        elif name in SEES_ALL:
            raise HiddenError


def _names(code: Any) -> Iterable[str]:
    """Global names and attributes in code and in the functions that it makes."""
    yield from code.co_names
    for constant in code.co_consts:
        if hasattr(constant, "co_names"):
            yield from _names(constant)


@functools.lru_cache(maxsize=1024)
def _imports(code: CodeType) -> bool:
    """Whether code imports what may change, where it runs."""
    if any(isinstance(constant, CodeType) and _imports(constant) for constant in code.co_consts):
        return True
    imported = [step.argval for step in dis.get_instructions(code) if step.opname == "IMPORT_NAME"]
    return any(name.split(".")[0] not in TRUSTED for name in imported)


@functools.lru_cache(maxsize=1024)
def _chains(code: CodeType) -> list[list[str]]:
    """Names that code takes one from another, as in torch.backends.cudnn; the first is global, or "" for all else."""
    found: list[list[str]] = []
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            found += _chains(constant)
    following = False
    for step in dis.get_instructions(code):
        if step.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
            found.append([step.argval])
        elif step.opname in ("LOAD_ATTR", "LOAD_METHOD"):
            if not following:
                found.append([""])
            found[-1].append(step.argval)
        following = step.opname in ("LOAD_GLOBAL", "LOAD_NAME", "LOAD_ATTR", "LOAD_METHOD")
    return found


def _notes(chain: Sequence[str], scope: Mapping[str, Any]) -> bool:
    """Whether code asks what torch is told or has counted, of torch itself or of a tensor."""
    value = scope.get(chain[0])
    for name in chain[1:]:
        known = isinstance(value, ModuleType) and _of_trusted(value)
        if not known and name in NOTED:
            return True
        value = getattr(value if known else torch, name, None)
        if _may_tell(value) and (known or not isinstance(value, ModuleType) or name in DEVICES):
            return True
        value = value if known else None
    return False


def _may_tell(value: Any) -> bool:
    """Whether something of torch's own may say another thing the next time, as no operation on tensors does."""
    if isinstance(value, ModuleType):
        return _package(value.__name__) not in PACKAGES
    if not isinstance(value, (FunctionType, BuiltinFunctionType)):
        return False
    if _package(str(value.__module__)) in DEVICES - {"_C"}:
        return True
    own = getattr(torch, value.__name__, None) is value or value.__module__ == "torch._C"
    return own and value.__name__ not in STEADY and not _on_tensors(value)


def _package(name: str) -> str:
    """What of torch a module belongs to; "" for torch itself and for what is not torch's."""
    parts = name.split(".")
    return parts[1] if parts[0] == "torch" and len(parts) > 1 else ""


def _on_tensors(function: Any) -> bool:
    """Whether a function is an operation: it can be overridden for tensors, or makes one."""
    if function in get_testing_overrides():
        return True
    operation = getattr(torch.ops.aten, function.__name__, None)
    overloads = [] if operation is None else [getattr(operation, name)._schema for name in operation.overloads()]
    return any(str(made.type) in ("Tensor", "List[Tensor]") for schema in overloads for made in schema.returns)


def _of_trusted(value: Any) -> bool:
    """Whether a module, class, function or constant is torch's or Python's own, so that it does not change."""
    if isinstance(value, (torch.dtype, torch.device)):
        return True
    name = value.__name__ if isinstance(value, ModuleType) else getattr(value, "__module__", None)
    stateless = isinstance(value, (ModuleType, type, BuiltinFunctionType)) or type(value).__module__ == "torch._ops"
    return stateless and str(name).split(".")[0] in TRUSTED


def _constant(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return all(map(_constant, value))
    if isinstance(value, dict):
        return all(_constant(item) for pair in value.items() for item in pair)
    return value is None or isinstance(value, (bool, int, float, str))


def plain(value: Any) -> Any:
    """A value to compare. Raises HiddenError."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (tuple, list)):
        return tuple([plain(item) for item in value])
    if isinstance(value, dict):
        return tuple([plain(item) for item in value.items()])
    if isinstance(value, Tensor):  # like saved tensors, covered by the proof whatever it holds
        strides = value.stride() if value.layout is torch.strided else None
        own = plain({name: item for name, item in vars(value).items() if name not in MARKS})
        return tuple(value.shape), value.dtype, value.device, value.requires_grad, strides, own
    if type(value).__module__ == "torch":  # a device, a dtype
        return str(value)
    raise HiddenError
