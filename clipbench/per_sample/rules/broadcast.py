"""Bare parameters that meet the samples by broadcasting: `x + p`, `x * p`, `x / p`, `p.expand(…)`, `torch.where`, …"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

from torch import Tensor

from clipbench.per_sample.care import deep
from clipbench.per_sample.rules.base import SmallUse, Use
from clipbench.per_sample.slots import Node, Slot


class Term(NamedTuple):
    """∂out/∂p of an elementwise node as `scale` · `factors`, each a tensor that broadcasts to the output."""

    scale: complex = 1.0
    factors: tuple[Tensor, ...] = ()


class BroadcastUse(SmallUse):
    """out = f(x, p) entry by entry, p broadcast over the samples: g_k = Σ over broadcast axes of δ_k · ∂out_k/∂p.

    `axes` of the output, over all of which every operand is broadcast, hold the rows.
    """

    shows_samples = False

    def __init__(
        self, node: Node, slots: Mapping[str, Slot], terms: Mapping[str, Term], axes: tuple[int, ...], n: int
    ) -> None:
        shape = node._input_metadata[0].shape
        super().__init__(node, dict(slots), [shape[axis] for axis in axes], n)
        self.axes = axes
        self.terms = terms

    def form(self, role: str) -> Tensor:
        product = deep(self.delta)
        term = self.terms[role]
        for factor in term.factors:
            product = product * factor.conj()  # conj: of a real tensor the tensor itself
        summed = self.split(product).sum(1)
        shape = self.slots[role].shape
        padded = (1,) * (self.delta.dim() - len(shape)) + tuple(shape)
        features = [length for axis, length in enumerate(padded) if axis not in self.axes]
        summed = summed.sum_to_size(self.n, *features)
        scale = term.scale.conjugate()
        if (summed.is_complex() or isinstance(scale, complex)) and not self.slots[role].param.dtype.is_complex:
            return (summed * scale).real  # a real parameter among complex numbers
        return summed if scale == 1.0 else summed * scale


def row_axes(out: tuple[int, ...], operand: tuple[int, ...], n: int) -> tuple[int, ...]:
    """Axes of `out` over which `operand` is broadcast and that may hold the samples.

    The leading ones; where the first axis is none of them, the first of length n, or else all.
    """
    padded = (1,) * (len(out) - len(operand)) + tuple(operand)
    free = [axis for axis, length in enumerate(padded) if length == 1]
    count = 0
    while count < len(free) and free[count] == count:
        count += 1
    if count:
        return tuple(range(count))
    fitting = [axis for axis in free if out[axis] == n]
    return tuple(fitting[:1] or [axis for axis in free if out[axis] > 1])


def read_broadcast(
    node: Node, slots: dict[int, Slot], terms: Callable[[], Mapping[int, Term] | None], n: int
) -> Use | None:
    """Operands by their index, each with its term; those that are not broadcast over the same axes are left out.

    Terms are asked for once the operands are known to fit: a checkpointed tensor is handed out once. None: no rule.
    """
    out = tuple(node._input_metadata[0].shape)
    chosen: tuple[int, ...] = ()
    named: dict[str, Slot] = {}
    for index, slot in slots.items():
        axes = row_axes(out, slot.shape, n)
        fits = not chosen or all(_free(out, slot.shape, axis) for axis in chosen)
        if slot.transposed or not axes or not fits:
            continue
        chosen = chosen or axes
        named[f"operand {index}"] = slot
    found = terms() if named else None
    if found is None:
        return None
    return BroadcastUse(node, named, {f"operand {index}": term for index, term in found.items()}, chosen, n)


def _free(out: tuple[int, ...], operand: tuple[int, ...], axis: int) -> bool:
    place = axis - (len(out) - len(operand))
    return place < 0 or operand[place] == 1


def read_add(node: Node, slots: dict[int, Slot], n: int) -> Use | None:
    """x + alpha · p; the scale applies to operand 1."""
    return read_broadcast(node, slots, lambda: {0: Term(), 1: Term(node._saved_alpha)}, n)


def read_sub(node: Node, slots: dict[int, Slot], n: int) -> Use | None:
    """x − alpha · p."""
    return read_broadcast(node, slots, lambda: {0: Term(), 1: Term(-node._saved_alpha)}, n)


def read_mul(node: Node, slots: dict[int, Slot], n: int) -> Use | None:
    """x · p: the other operand is needed."""

    def terms() -> Mapping[int, Term] | None:
        factors = {index: node._saved_self if index else node._saved_other for index in slots}
        if any(factor is None for factor in factors.values()):  # a number, not a tensor
            return None
        return {index: Term(1.0, (factor,)) for index, factor in factors.items()}

    return read_broadcast(node, slots, terms, n)


def read_div(node: Node, slots: dict[int, Slot], n: int) -> Use | None:
    """x / p and p / x."""

    def terms() -> Mapping[int, Term]:
        inverse = node._saved_other.reciprocal()
        found = {0: Term(1.0, (inverse,))}
        if 1 in slots:
            found[1] = Term(-1.0, (node._saved_self, inverse, inverse))
        return found

    return read_broadcast(node, slots, terms, n)


def read_where(node: Node, slots: dict[int, Slot], n: int) -> Use | None:
    """p where the condition holds (the first operand), or where it does not (the second)."""

    def terms() -> Mapping[int, Term]:
        condition = node._saved_condition
        first = len(node.next_functions) - 2  # the condition may count as an operand
        return {first: Term(1.0, (condition,)), first + 1: Term(1.0, (~condition,))}

    return read_broadcast(node, slots, terms, n)


def read_addcmul(node: Node, slots: dict[int, Slot], n: int) -> Use | None:
    """b + value · a · x."""

    def terms() -> Mapping[int, Term]:
        found = {0: Term()}
        for index, saved in ((1, "_saved_tensor2"), (2, "_saved_tensor1")):
            if index in slots:
                found[index] = Term(node._saved_value, (getattr(node, saved),))
        return found

    return read_broadcast(node, slots, terms, n)


def read_expand(node: Node, slots: dict[int, Slot], n: int) -> Use | None:
    """p.expand(n, …)."""
    return read_broadcast(node, slots, lambda: {0: Term()}, n)


class RepeatUse(SmallUse):
    """p.repeat(…): δ has, for every axis that is repeated, one of copies before that of p; rows are the copies."""

    shows_samples = False

    def __init__(self, node: Node, slot: Slot, copies: tuple[int, ...], shape: tuple[int, ...], n: int) -> None:
        super().__init__(node, {"weight": slot}, [count for count in copies if count > 1], n)
        self.interleaved = [length for pair in zip(copies, shape, strict=True) for length in pair]
        self.axes = tuple(2 * axis for axis, count in enumerate(copies) if count > 1)

    def flat(self, tensor: Tensor) -> Tensor:
        apart = tensor.reshape(self.interleaved).movedim(self.axes, tuple(range(len(self.axes))))
        return apart.reshape(self.rows, -1)

    def form(self, role: str) -> Tensor:
        return self.split(deep(self.delta)).sum(1)


def read_repeat(node: Node, slots: dict[int, Slot], n: int) -> Use | None:
    """Operand 0: InstanceNorm's repeats of a vector, positions that every head of every sample shares."""
    slot, copies = slots[0], tuple(node._saved_repeats)
    shape = (1,) * (len(copies) - len(slot.shape)) + slot.shape
    return None if slot.transposed or max(copies) == 1 else RepeatUse(node, slot, copies, shape, n)
