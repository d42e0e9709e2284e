"""Vector-Jacobian products through a part of an autograd graph, one at a time or a batch of them at once."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Hashable, Iterable, Sequence

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from clipbench.per_sample.care import readable
from clipbench.per_sample.slots import Node

Gradients = Sequence[Tensor | None]
POINTWISE = re.compile(
    "(Mul|Div|Pow|Addcmul|Addcdiv|Lerp|Hypot|Atan2|Maximum|Minimum|Fmax|Fmin|Fmod|Remainder|Xlogy|Copysign|Ldexp|"
    "Logaddexp2?|Where|SpecialXlog1Py|PreluKernel)Backward[0-9]"
)
"""torch's own nodes of which each entry depends on its operands' entries at its own place alone, up to broadcasting."""
_LOOPED: set[object] = set()
"""Names of calls through which torch could not send a batch."""
_TRUSTED: set[object] = set()
"""Names of calls through which a batch went, and came out as from a loop."""


def products(outputs: Sequence[GradientEdge], inputs: Sequence[GradientEdge], deltas: Gradients) -> Gradients:
    """Jᵀ δ for every input (None where no output depends on it), δ of the shapes of the outputs; keeps the graph."""
    return torch.autograd.grad(outputs, inputs, deltas, retain_graph=True, allow_unused=True)


def apart(gradients: Gradients) -> Gradients:
    """Each in memory of its own, to be written to: autograd hands one tensor to both terms of a sum."""
    seen: set[int] = set()
    result: list[Tensor | None] = []
    for gradient in gradients:
        if gradient is not None:
            memory = gradient.untyped_storage()._cdata
            spread = any(
                stride == 0 and size > 1 for stride, size in zip(gradient.stride(), gradient.shape, strict=True)
            )
            gradient = gradient.clone(memory_format=torch.contiguous_format) if spread or memory in seen else gradient
            seen.add(memory)
        result.append(gradient)
    return result


def node_products(node: Node, operands: Sequence[int], delta: Tensor, chosen: Tensor | None = None) -> Gradients:
    """Jᵀ δ for operands of one node alone, of the operands' shapes; what is below the node is not walked.

    torch's own nodes can be called; they leave it to the engine to sum over broadcast axes. A Python Function's node
    gives a gradient for every argument, tensor or not: its operands with a gradient are found by their order.
    chosen: which rows of δ are not zero, of a shape that broadcasts to δ's. Others are zero in what `POINTWISE` nodes
    sum over broadcast axes, too, also where they meet a value that is not finite. In what moves or mixes rows (flip,
    roll, a cross product, a solution of equations) other rows than the chosen ones get gradients.
    """
    pointwise = POINTWISE.fullmatch(type(node).__name__)
    if callable(node):
        found = node(delta)
        places = {operand: operand for operand in operands}
    else:
        found = node.apply(delta)
        wanted = [place for place, needed in enumerate(node.needs_input_grad) if needed]
        given = [index for index, (child, _) in enumerate(node.next_functions) if child is not None]
        places = dict(zip(given, wanted, strict=True))
    found = found if isinstance(found, tuple) else (found,)
    gradients = []
    for operand in operands:
        child, output = node.next_functions[operand]
        gradient, shape = found[places[operand]], torch.Size(child._input_metadata[output].shape)
        if pointwise and gradient is not None and chosen is not None and gradient.shape == delta.shape != shape:
            gradient = torch.where(chosen, gradient, 0.0)
        gradients.append(gradient if gradient is None else gradient.sum_to_size(shape))
    return gradients


def batched(call: Callable[..., Gradients], deltas: Sequence[Tensor], name: Hashable) -> Gradients:
    """`call` for b vectors at once: deltas (b, *shape), each, give gradients (b, *shape).

    Where torch cannot send a batch through (an own autograd.Function that reads values), or makes other numbers of one
    (the backward of cdist with points that all samples share), by a loop over b. `name` stands for the operations: the
    first batch that goes through them is compared with the loop, once for each number of axes.
    """
    name = name, tuple([delta.dim() for delta in deltas])
    found: Gradients | None = None
    if name not in _LOOPED:
        try:
            found = _at_once(call, deltas)
        except Exception:  # whatever a user's code raises: where the batch is not at fault, the loop meets it again
            _LOOPED.add(name)
    if found is not None and (name in _TRUSTED or len(deltas[0]) == 1 or not readable(deltas[0])):
        return found
    rows = [call(*each) for each in zip(*deltas, strict=True)]
    looped: Gradients = [None if parts[0] is None else torch.stack(parts) for parts in zip(*rows, strict=True)]
    if found is not None and not all(map(_agree, found, looped)):
        _LOOPED.add(name)
    elif found is not None and all(rows is None or bool((rows[1:] != 0).any()) for rows in looped):
        _TRUSTED.add(name)  # zeros tell nothing
    return looped


def _agree(first: Tensor | None, second: Tensor | None) -> bool:
    """Whether two results are the same but for rounding; entries that are not finite count for nothing."""
    if first is None or second is None:
        return first is second
    if first.shape != second.shape:
        return False
    off, size = (first - second).abs(), second.abs()
    use = off.isfinite() & size.isfinite()
    bound = torch.finfo(first.dtype).eps ** 0.5 * float(torch.where(use, size, 0.0).max()) if size.numel() else 0.0
    return bool((torch.where(use, off, 0.0) <= bound).all())


def nodes_below(nodes: Iterable[Node]) -> set[Node]:
    """All nodes of the graph below some, these included."""
    seen = set(nodes)
    stack = list(seen)
    while stack:
        for child, _ in stack.pop().next_functions:
            if child is not None and child not in seen:
                seen.add(child)
                stack.append(child)
    return seen


def kinds_below(nodes: Iterable[Node]) -> frozenset[str]:
    """Their names."""
    return frozenset(type(node).__name__ for node in nodes_below(nodes))


def _at_once(call: Callable[..., Gradients], deltas: Sequence[Tensor]) -> Gradients:
    """The batch through torch's vmap, which knows no None."""
    present: list[bool] = []

    def without_none(*each: Tensor) -> tuple[Tensor, ...]:
        found = call(*each)
        present[:] = [g is not None for g in found]
        return tuple(g for g in found if g is not None)

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="There is a performance drop")
        rows = iter(torch.func.vmap(without_none)(*deltas))
    return [next(rows) if there else None for there in present]
