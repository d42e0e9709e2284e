"""A reader of pickles that hold plain data: numbers, text, lists, dictionaries, and arrays of bytes.

A pickle can name any function for the reader to call, and hand any bytes to NumPy's reconstruction of arrays, which
trusts them: two changed bytes there can end the interpreter. So neither is done here. Python's own implementation of
the format reads the file, without its opcodes for objects; what NumPy would be called for is kept as plain values, and
an array is made of them only where its length is that of its bytes. Nothing else ever parses such a file.
"""

from __future__ import annotations

import io
import math
import pickle
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

# Protocol 2 and the text of protocols 3 and 4, without what builds objects of any class.
OPCODES = (
    "PROTO", "STOP", "MARK", "FRAME", "NONE", "NEWTRUE", "NEWFALSE", "INT", "BININT", "BININT1", "BININT2",
    "LONG1", "BINFLOAT", "BINSTRING", "SHORT_BINSTRING", "BINUNICODE", "SHORT_BINUNICODE", "BINBYTES",
    "SHORT_BINBYTES", "EMPTY_LIST", "APPEND", "APPENDS", "EMPTY_DICT", "SETITEM", "SETITEMS", "EMPTY_TUPLE",
    "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "BINPUT", "LONG_BINPUT", "MEMOIZE", "BINGET", "LONG_BINGET",
    "GLOBAL", "STACK_GLOBAL", "REDUCE", "BUILD",
)  # fmt: skip


class _Name:
    """A class or function that a file names: what it would be called with is kept, or refused."""

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self, *arguments: Any) -> Any:
        if self.name == "bytes":
            return _latin1(*arguments)
        if self.name == "ndarray":
            _refuse("an array without its bytes")
        return _Array() if self.name == "array" else _Kind(arguments)

    def __setstate__(self, state: Any) -> NoReturn:
        _refuse("a state for a name")


class _Kind:
    """Stands for a dtype."""

    __slots__ = ("arguments",)

    def __init__(self, arguments: tuple[Any, ...]) -> None:
        self.arguments = arguments

    def __setstate__(self, state: Any) -> None:
        """Byte order and alignment, which say nothing of single bytes."""


class _Array:
    """Stands for an array until its state comes."""

    __slots__ = ("state",)

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def value(self) -> np.ndarray:
        """(*shape) uint8. Raises UnpicklingError where the state is not that of such an array."""
        state = getattr(self, "state", None)
        if not isinstance(state, tuple) or len(state) != 5:
            _refuse("an array without its bytes")
        _, shape, kind, by_columns, raw = state
        content = _latin1(raw, "latin1") if isinstance(raw, str) else raw
        sizes = isinstance(shape, tuple) and all(type(size) is int and size >= 0 for size in shape)
        if not sizes or not isinstance(kind, _Kind) or not isinstance(content, bytes) or by_columns not in (False, 0):
            _refuse("an array that is none")
        if not kind.arguments or kind.arguments[0] not in ("u1", "|u1", "B", "uint8"):
            _refuse("an array of other things than bytes")
        if math.prod(shape) != len(content):
            _refuse(f"an array of {math.prod(shape)} bytes with {len(content)} of them")
        return np.frombuffer(content, dtype=np.uint8).reshape(shape)


def _latin1(text: Any, encoding: Any = None) -> bytes:
    """How protocol 2 spells bytes; codecs.encode itself would run any registered codec."""
    if encoding != "latin1" or not isinstance(text, str):
        _refuse(f"bytes in the encoding {encoding}")
    return text.encode("latin1")


def _refuse(what: str) -> NoReturn:
    raise pickle.UnpicklingError(f"{what} is not allowed in a data file")


ALLOWED = {
    ("numpy.core.multiarray", "_reconstruct"): "array",
    ("numpy._core.multiarray", "_reconstruct"): "array",
    ("numpy", "ndarray"): "ndarray",
    ("numpy", "dtype"): "dtype",
    ("_codecs", "encode"): "bytes",
}


class _Reader(pickle._Unpickler):
    """Python's own unpickler: the one in C trusts the file's numbers for the sizes of its tables."""

    dispatch = {  # noqa: RUF012 - as the class it comes from has it
        code: read
        for code, read in pickle._Unpickler.dispatch.items()
        if code in {getattr(pickle, name)[0] for name in OPCODES}
    }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ALLOWED:
            _refuse(f"{module}.{name}")
        return _Name(ALLOWED[module, name])


def read(path: Path) -> Any:
    """The object in `path`; see `parse`."""
    return parse(path.read_bytes())


def parse(content: bytes) -> Any:
    """The object that a pickle holds; arrays are made where it is one itself, or a dictionary with such values.

    Raises pickle.UnpicklingError where it is not plain data, or damaged.
    """
    try:
        found = _Reader(io.BytesIO(content), encoding="latin1").load()
        if isinstance(found, dict):
            return {key: _made(value) for key, value in found.items()}
        return _made(found)
    except pickle.UnpicklingError:
        raise
    except Exception as error:  # a damaged pickle raises nearly anything: EOFError, KeyError, TypeError, …
        raise pickle.UnpicklingError(f"damaged ({type(error).__name__}: {error})") from error


def _made(value: Any) -> Any:
    return value.value() if isinstance(value, _Array) else value
