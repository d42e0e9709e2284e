"""Norms over all parameters from those of their parts; what the fast forms leave in doubt is asked for again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from clipbench.per_sample.care import Care, least, readable, taking
from clipbench.per_sample.factors import across, scaled_norms
from clipbench.per_sample.rules import Use


class Part(NamedTuple):
    """Some parameters: how their norms (n,) are computed, and the uses these are computed from (None: the graph)."""

    norms: Callable[[], Tensor]
    uses: Sequence[Use] | None


def total_norms(parts: Sequence[Part], like: Tensor) -> tuple[Tensor, bool]:
    """‖g_k‖₂ over all parts, (n,), on the device of `like`, and whether all are known to be finite.

    They are inf or NaN only where a gradient or its norm is.
    On a CPU, where reading is free, parts of samples in doubt (see `care`) are computed again, SURE; where values
    cannot be read or should not be waited for, all are computed BLIND.
    """
    if not parts:
        return torch.zeros_like(like), False
    if like.device.type != "cpu" or not readable(like):
        with taking(Care.BLIND):
            found = [part.norms() for part in parts]
            return across(found).to(_norm_dtype(parts, like)), False
    found = [part.norms() for part in parts]
    total = across(found)
    low = max(least(norms.dtype) for norms in found)
    smallest, largest = (value.item() for value in total.aminmax())
    if low < smallest and largest < torch.inf:  # false for NaN
        return total, True
    return _made_sure(parts, found, ~((total > low) & (total < torch.inf)), total), False


def _made_sure(parts: Sequence[Part], found: Sequence[Tensor], doubt: Tensor, total: Tensor) -> Tensor:
    """The total with samples in doubt (n,) looked at again: parts that are in doubt themselves, and where what is
    left is small enough to have lost something, all."""
    again = [norms.double() for norms in found]
    sure = [part.uses is None for part in parts]  # from the graph, that is SURE already
    low = max(least(norms.dtype) for norms in found)
    for small in (False, True):
        for place, part in enumerate(parts):
            if not sure[place] and (small or not bool(found[place][doubt].isfinite().all())):
                again[place] = _sure_norms(part, doubt, again[place])
                sure[place] = True
        new = scaled_norms(torch.stack(again, 1))
        if bool((new[doubt] > low).all()):  # false for NaN
            break
    return torch.where(doubt, new.to(total.dtype), total)


def _sure_norms(part: Part, doubt: Tensor, norms: Tensor) -> Tensor:
    """A part's norms (n,) with those of samples in doubt SURE; zero where their gradients do not reach it."""
    assert part.uses is not None  # the caller asked
    if not any(use.reached(doubt) for use in part.uses) and not bool(norms[doubt].isnan().any()):
        return norms.masked_fill(doubt, 0.0)
    for use in part.uses:
        use.forget()
    with taking(Care.SURE):
        return torch.where(doubt, part.norms().double(), norms)


def _norm_dtype(parts: Sequence[Part], like: Tensor) -> torch.dtype:
    """The dtype in which norms are given: float64 where some gradients are in it."""
    kinds = {like.dtype} | {use.delta.dtype for part in parts for use in part.uses or ()}
    return torch.float64 if kinds & {torch.float64, torch.complex128} else torch.float32
