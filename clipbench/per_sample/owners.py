"""What a gradient carries while owners are followed: owners, as an attribute of the tensor, and whose memory it is."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from clipbench.per_sample.spelling import label_device
from clipbench.per_sample.surrogates import NOBODY, SHARED


class Memory:
    """Of a tensor and its views: whether a gradient was written into it since it was made, all zeros."""

    def __init__(self, written: bool) -> None:
        self.written = written
        self.frozen = False  # whether other owners than a view's were made of it, which do not see what is written


class Held:
    """What a gradient carries: the owners of its entries (float32, of its shape), and whose memory it is."""

    def __init__(self, owners: Tensor, memory: Memory) -> None:
        self.owners = owners
        self.memory = memory


def held_by(leaf: Any) -> Held | None:
    """What a gradient carries; None for any other value."""
    return getattr(leaf, "_held", None) if isinstance(leaf, Tensor) else None


def owners_of(leaf: Any) -> Tensor | None:
    """Owners of a gradient; None for any other value."""
    held = held_by(leaf)
    return None if held is None else held.owners


def hold(tensor: Tensor, owners: Tensor, memory: Memory) -> None:
    """Attach owners in memory of their own, with the tensor's strides, so that views of both go alike."""
    shape, strides = tuple(tensor.shape), tensor.stride()
    spread = any(stride == 0 and size > 1 for stride, size in zip(strides, shape, strict=True))
    fresh = owners.new_empty(shape) if spread else owners.new_empty_strided(shape, strides)
    tensor._held = Held(fresh.copy_(owners), memory)  # type: ignore[attr-defined]


def same_memory(tensor: Tensor, owners: Tensor) -> bool:
    """Whether strides into one are strides into the other."""
    return bool(tensor.stride() == owners.stride() and tensor.storage_offset() == owners.storage_offset() == 0)


def with_owners(tree: Any, blank: bool = False) -> Any:
    """Arguments with owners in place of gradients; with `blank`, other values become nobody's."""

    def swap(leaf: Any) -> Any:
        owners = owners_of(leaf)
        if owners is not None:
            return owners
        if blank and isinstance(leaf, Tensor) and (leaf.is_floating_point() or leaf.is_complex()):
            return torch.zeros(tuple(leaf.shape), device=label_device(leaf))
        return leaf

    return tree_map(swap, tree)


def whole(marks: Tensor) -> Tensor:
    """Owner of every row of owners (rows, entries): (rows,), int64."""
    if marks.shape[1] == 0:
        return marks.new_zeros(marks.shape[0], dtype=torch.int64)
    high = marks.amax(1)
    low = torch.where(marks == NOBODY, high[:, None], marks).amin(1)  # SHARED is lowest
    return torch.where(low == high, high, SHARED).to(torch.int64)
