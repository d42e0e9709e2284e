"""A convolution's geometry, its unfolded input, and the map from positions of the input to pairs of outputs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Geometry(NamedTuple):
    """Kernel, stride, padding and dilation of a convolution, one number for each axis of space."""

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]

    @property
    def taps(self) -> int:
        """Entries of the kernel."""
        return math.prod(self.kernel)

    def offsets(self) -> Iterator[tuple[int, ...]]:
        """Where each tap sits, relative to the corner of its window, in the kernel's order."""
        axes = [range(0, size * step, step) for size, step in zip(self.kernel, self.dilation, strict=True)]
        yield from _product(axes)

    def valid(self, offset: Sequence[int], space: Sequence[int], out: Sequence[int]) -> list[tuple[range, range]]:
        """For each axis: the outputs whose tap at `offset` lies inside the input, and the inputs it meets there."""
        pairs = []
        for shift, step, pad, length, count in zip(offset, self.stride, self.padding, space, out, strict=True):
            first = max(0, -((shift - pad) // step))
            last = max(first, min(count, (length - 1 + pad - shift) // step + 1))
            start = first * step + shift - pad
            pairs.append((range(first, last), range(start, start + (last - first) * step, step)))
        return pairs

    def valid_pairs(self, space: Sequence[int], out: Sequence[int]) -> int:
        """Number of (output, tap) pairs that meet the input and not its padding."""
        return sum(math.prod(len(inside) for inside, _ in self.valid(offset, space, out)) for offset in self.offsets())


def _product(axes: Sequence[range]) -> Iterator[tuple[int, ...]]:
    if not axes:
        yield ()
        return
    for head in axes[0]:
        for tail in _product(axes[1:]):
            yield (head, *tail)


def unfold(image: Tensor, geometry: Geometry, out: Sequence[int], groups: int) -> Tensor:
    """(n, C, *space) → (n, groups, positions, taps · C/groups): what every output position sees.

    Channels go last before windows are cut, so that what is copied are long runs.
    """
    n, channels = image.shape[:2]
    dims = len(geometry.kernel)
    x = image.movedim(1, -1)
    pads = [amount for pad in reversed(geometry.padding) for amount in (pad, pad)]
    x = F.pad(x, [0, 0, *pads]).contiguous()
    for axis in range(dims):
        span = (geometry.kernel[axis] - 1) * geometry.dilation[axis] + 1
        x = x.unfold(1 + axis, span, geometry.stride[axis]).narrow(1 + axis, 0, out[axis])
    if any(step > 1 for step in geometry.dilation):
        for axis, step in enumerate(geometry.dilation):
            x = x[(slice(None),) * (x.dim() - dims + axis) + (slice(None, None, step),)]
    x = x.movedim(1 + dims, -1).unflatten(-1, (groups, channels // groups))
    x = x.movedim(-2, 1)
    return x.reshape(n, groups, math.prod(out), geometry.taps * (channels // groups))


def window_sums(gram: Tensor, geometry: Geometry, space: Sequence[int], out: Sequence[int]) -> Tensor:
    """Gram matrix of input positions (n, HW, HW) → that of unfolded positions (n, P, P), nothing unfolded.

    ⟨u_p, u_q⟩ = Σ_taps ⟨x_{p+tap}, x_{q+tap}⟩: a fixed 0/1 map. Applied as a matrix where that is small, else as a
    sum of shifted slices.
    """
    n, area, positions = gram.shape[0], math.prod(space), math.prod(out)
    if area * area <= 64 * geometry.taps:
        pairs = pair_map(geometry, space, out, gram)
        return (gram.reshape(n, area * area) @ pairs).view(n, positions, positions)
    pads = [amount for pad in reversed(geometry.padding) for amount in (pad, pad)]
    padded = F.pad(gram.view(n, *space, *space), pads * 2) if any(pads) else gram.view(n, *space, *space)
    total: Tensor | None = None
    for offset in geometry.offsets():
        cuts = tuple(
            slice(shift, shift + (count - 1) * step + 1, step)
            for shift, step, count in zip(offset, geometry.stride, out, strict=True)
        )
        piece = padded[(slice(None), *cuts, *cuts)]
        total = piece.clone() if total is None else total.add_(piece)
    assert total is not None
    return total.reshape(n, positions, positions)


_PAIR_MAPS: dict[tuple[object, ...], Tensor] = {}


def pair_map(geometry: Geometry, space: Sequence[int], out: Sequence[int], like: Tensor) -> Tensor:
    """The 0/1 map of `window_sums` as a matrix (HW², P²), kept once made."""
    key = (geometry, tuple(space), tuple(out), like.dtype, like.device, type(like))  # fake and real do not mix
    if key in _PAIR_MAPS:
        return _PAIR_MAPS[key]
    area, positions = math.prod(space), math.prod(out)
    inside = like.new_zeros((geometry.taps, area, positions))
    for tap, offset in enumerate(geometry.offsets()):
        for source, target in _meetings(geometry, offset, space, out):
            inside[tap, source, target] = 1.0
    result = torch.einsum("kip,kjq->ijpq", inside, inside).reshape(area * area, positions * positions)
    if type(result) is Tensor:
        _PAIR_MAPS[key] = result
    return result


def _meetings(
    geometry: Geometry, offset: Sequence[int], space: Sequence[int], out: Sequence[int]
) -> Iterator[tuple[int, int]]:
    """Flat (input, output) positions that one tap joins."""
    sources, targets = [0], [0]
    for (inside, met), length, count in zip(geometry.valid(offset, space, out), space, out, strict=True):
        sources = [source * length + i for source in sources for i in met]
        targets = [target * count + p for target in targets for p in inside]
    yield from zip(sources, targets, strict=True)
