"""The gradients of one step, of all members: each layer's formed (R, *shape), or still as the rows it is the sum of."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from clipbench.clipping.lengths import ONE_STEP, PLAIN, ROW, readable
from clipbench.training.together.numbers import over


class LayerGradient:
    """G = deltaᵀ inputs for inputs (R, rows, n) and delta (R, rows, m), (R, m, n), or `formed` in another way.

    With `rows` no product is made until somebody asks for it. What changes the formed gradient alone makes the rows
    void.
    """

    def __init__(self, rows: tuple[Tensor, Tensor] | None = None, formed: Tensor | None = None) -> None:
        self.rows = rows
        self._formed = formed

    @property
    def formed(self) -> Tensor:
        """(R, *shape)."""
        if self._formed is None:
            assert self.rows is not None  # one of both is always there
            inputs, delta = self.rows
            self._formed = torch.bmm(delta.mT, inputs)
        return self._formed

    @property
    def is_formed(self) -> bool:
        """Whether the product has been made already."""
        return self._formed is not None

    def replace(self, formed: Tensor) -> None:
        """Another gradient in its place, formed."""
        self._formed, self.rows = formed, None

    def replace_rows(self, rows: tuple[Tensor, Tensor]) -> None:
        """Another gradient in its place, as rows."""
        self._formed, self.rows = None, rows

    def put(self, members: Tensor, inputs: Tensor, delta: Tensor) -> None:
        """Other rows for some members, a tensor of their numbers; what is formed already follows."""
        assert self.rows is not None  # only where there are rows
        formed = self._formed
        old_inputs, old_delta = self.rows
        self.rows = old_inputs.index_copy(0, members, inputs), old_delta.index_copy(0, members, delta)
        if formed is not None:
            self._formed = formed.index_copy(0, members, torch.bmm(delta.mT, inputs))

    def multiply(self, factor: Tensor) -> None:
        """Each member's gradient times its factor (R,), float64; one too small for float32 acts in two steps."""
        if bool(((factor < ONE_STEP) & (factor > 0)).any()):
            first = factor.clamp(min=ONE_STEP)
            self.multiply(first)
            factor = factor / first
        if self.rows is not None:
            inputs, delta = self.rows
            self.rows = inputs, delta * over(factor, delta)
        if self._formed is not None:
            self._formed = self._formed * over(factor, self._formed)

    def length(self) -> Tensor:
        """Each member's Frobenius norm, (R,), float64; also where squares leave the gradient's dtype."""
        flat = self.formed.flatten(1)
        found = torch.linalg.vector_norm(_shortened(flat), dim=1).double()
        odd = ~((found > PLAIN[0]) & (found < PLAIN[1]))
        if readable(found) and not bool(odd.any()):
            return found
        unit = flat.abs().amax(1).double()
        unit = torch.where((unit > 0) & torch.isfinite(unit), unit, 1.0)
        exact = torch.linalg.vector_norm(flat.double() / unit[:, None], dim=1) * unit
        return torch.where(odd, exact, found)


def _shortened(flat: Tensor) -> Tensor:
    """Vectors (R, fewer) with the norms of `flat` (R, entries): as they are where short, norms of their rows where not.

    On a CPU torch's own float32 norm of many millions of entries is wrong by 3e-3, in rows by 3e-7.
    """
    if flat.shape[1] < 64 * ROW:
        return flat
    even = flat.shape[1] - flat.shape[1] % ROW
    parts = torch.linalg.vector_norm(flat[:, :even].unflatten(1, (-1, ROW)), dim=2)
    return torch.cat([parts, flat[:, even:]], dim=1)


Gradients = dict[str, LayerGradient]


class Clipped(NamedTuple):
    """What clipping did to each member, as clipbench.clipping.ClipStats: each (R,)."""

    norm: Tensor | None
    clipped_fraction: Tensor


def lengths(gradients: Gradients) -> Tensor:
    """Frobenius norms (R, layers), float64, in the order of the layers."""
    return torch.stack([layer.length() for layer in gradients.values()], dim=1)


def norm(lengths: Tensor) -> Tensor:
    """Norms of all layers together (R,) from those of each (R, layers), lest a square overflow."""
    largest = lengths.amax(1, keepdim=True)
    unit = torch.where((largest > 0) & torch.isfinite(largest), largest, 1.0)
    return torch.linalg.vector_norm(lengths / unit, dim=1) * unit[:, 0]


def mean(parts: Sequence[Gradients]) -> Gradients:
    """The mean of several gradients of the same layers: rows are put one after the other, what is formed is added."""
    found: Gradients = {}
    for name in parts[0]:
        layers = [part[name] for part in parts]
        if all(layer.rows is not None for layer in layers):
            pairs = [layer.rows for layer in layers if layer.rows is not None]
            inputs = torch.cat([pair[0] for pair in pairs], dim=1)
            delta = torch.cat([pair[1] for pair in pairs], dim=1)
            found[name] = LayerGradient((inputs, delta / len(parts)))
        else:
            found[name] = LayerGradient(formed=_sum(layer.formed for layer in layers) / len(parts))
    return found


def _sum(tensors: Iterable[Tensor]) -> Tensor:
    total: Tensor | None = None
    for tensor in tensors:
        total = tensor.clone() if total is None else total.add_(tensor)
    assert total is not None
    return total
