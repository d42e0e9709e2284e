"""How much care norms are computed with: three ways to the same numbers, since squares leave a dtype before norms do.

FAST squares and sums in the gradients' own precision (float32 for half precisions). A norm whose squares may have
left the dtype's range, or that a Gram form may have lost to cancellation, is marked by inf: it has to be asked for
again. SURE is that second time: everything in float64, in which products of float32 numbers are exact and no square
of one overflows. BLIND is for values that cannot be read, so that nothing can be asked for again: on accelerators,
while tracing. There squares are always summed in float64, and Gram forms taken in it, but gradients are formed in
their own precision.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from enum import Enum

import torch
from torch import Tensor
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack


class Care(Enum):
    """See above."""

    FAST = "fast"
    BLIND = "blind"
    SURE = "sure"


_CURRENT: ContextVar[Care] = ContextVar("care", default=Care.FAST)
HALVES = (torch.bfloat16, torch.float16)


@contextmanager
def taking(care: Care) -> Iterator[None]:
    """Norms are computed with this care inside."""
    token = _CURRENT.set(care)
    try:
        yield
    finally:
        _CURRENT.reset(token)


def fast() -> bool:
    """Whether what is doubtful is marked, and asked for again."""
    return _CURRENT.get() is Care.FAST


def promoted(tensor: Tensor) -> Tensor:
    """In the precision gradients are formed in: float32 for half precisions, else its own; float64 where SURE."""
    if _CURRENT.get() is Care.SURE:
        return double(tensor)
    return tensor.float() if tensor.dtype in HALVES else tensor


def deep(tensor: Tensor) -> Tensor:
    """In the precision squares are summed in: float64, but for FAST."""
    return promoted(tensor) if fast() else double(tensor)


def double(tensor: Tensor) -> Tensor:
    """In float64, or complex128."""
    return tensor.to(torch.complex128 if tensor.is_complex() else torch.float64)


def least(dtype: torch.dtype) -> float:
    """The norm below which squares that fell out of the dtype may be missed, for up to 2²⁷ entries: 2⁻⁴⁹ in float32."""
    return float((torch.finfo(dtype).tiny * 2.0**28) ** 0.5)


def marked(norms: Tensor) -> Tensor:
    """Norms (n,) of one factor of a product, in place, with inf for those that are too small to be relied on."""
    return torch.threshold_(norms, least(norms.dtype), torch.inf) if fast() else norms


def grams_apart(tensor: Tensor) -> bool:
    """Whether a Gram form may be taken of factors like this one: FAST sees what it loses, float64 loses nothing."""
    return fast() or tensor.dtype not in (torch.float64, torch.complex128)


def readable(tensor: Tensor) -> bool:
    """Whether values may be read at all: not while tracing, compiling, capturing a CUDA graph or with fake tensors."""
    if type(tensor) is not Tensor or _get_current_dispatch_mode_stack() or torch.compiler.is_compiling():
        return False
    return not (tensor.is_cuda and torch.cuda.is_current_stream_capturing())
