"""A restricted unpickler: numbers, text, lists, dictionaries and numpy arrays, and nothing else.

A pickle can name any function for the reader to call. Files whose checksum is the official one are known;
those opened with data.verify=false are not, and go through here before any other parser sees them.
"""

from __future__ import annotations

import codecs
import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np


def _latin1(text: str, encoding: str) -> bytes:
    """How protocol 2 spells bytes; codecs.encode itself would run any registered codec."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"encoding {encoding} is not allowed in a data file")
    return codecs.latin_1_encode(text)[0]


_reconstruct: Callable[..., Any] = np.zeros(0).__reduce__()[0]  # type: ignore[assignment]

ALLOWED: dict[tuple[str, str], Any] = {
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("_codecs", "encode"): _latin1,
}


class _DataUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ALLOWED:
            raise pickle.UnpicklingError(f"{module}.{name} is not allowed in a data file")
        return ALLOWED[module, name]


def read(path: Path) -> Any:
    """The object in `path`. Raises pickle.UnpicklingError where it is not plain data, or damaged."""
    try:
        return _DataUnpickler(io.BytesIO(path.read_bytes()), encoding="latin1").load()
    except pickle.UnpicklingError:
        raise
    except Exception as error:  # a damaged pickle raises nearly anything: EOFError, KeyError, TypeError, …
        raise pickle.UnpicklingError(f"damaged ({type(error).__name__}: {error})") from error
