"""Telling losses that mix samples from layers that take none: constants that every sample shares.

In both every row of a layer gets gradients of several losses. What a layer makes of constants (coordinates, names of
classes, a noise that a network turns into weights) meets the samples later, in an operation with data that bring them
in. Where samples are mixed (a contrastive loss, a batch statistic), nothing does: they came in with the rows.
"""

from __future__ import annotations

from collections.abc import Container, Sequence

from clipbench.per_sample.pullback import nodes_below
from clipbench.per_sample.rules import NodeUse, Use
from clipbench.per_sample.slots import Derived, Node, Slot


def suspicious(mixed: Sequence[Use], uses: Sequence[Use], n: int) -> bool:
    """Whether samples share rows of all uses of a first walk, one of which takes data of n rows, or of twice as many.

    A table that is read by position is no such use.
    """
    return len(mixed) == len(uses) and any(use.shows_samples and {n, 2 * n} & {*use.lead} for use in mixed)


def refuse_mixed(uses: Sequence[Use], params: Container[int]) -> None:
    """Raise ValueError unless samples come in at these uses, of what was made of such rows (see above).

    params: ids of the model's parameters. What has a gradient of other things alone (data that ask for one, another
    network's output) is data.
    """
    read = [(use, slot) for use in uses for slot in use.slots.values() if isinstance(slot.param, Derived)]
    if any(_meets_data(use, slot, params) for use, slot in read) and not any(
        _one_by_one(use, slot) for use, slot in read
    ):
        return
    raise ValueError(
        "losses must depend on one sample each, got losses that mix samples: the gradient of one of them reaches "
        "the others' rows in every layer (a batch statistic, a contrastive loss, or the mean taken too early?)"
    )


def _meets_data(use: Use, slot: Slot, params: Container[int]) -> bool:
    """Whether the use gives its result an axis that what it reads has not, after data: operands without parameters."""
    trained = [_trained(child, params) for child, _ in use.node.next_functions]
    if sum(trained) > len(use.slots):
        return False  # the other operand is made of such rows, too
    if not isinstance(use, NodeUse):
        return slot.param.numel() > 1  # not one number, made of all samples, that is handed back to each
    return not all(trained) and slot.shape != tuple(use.node._input_metadata[0].shape)


def _trained(child: Node, params: Container[int]) -> bool:
    """Whether parameters of the model are below a node (None: what has no gradient)."""
    below = nodes_below([child]) if child is not None else ()
    return any(type(node).__name__ == "AccumulateGrad" and id(node.variable) in params for node in below)


def _one_by_one(use: Use, slot: Slot) -> bool:
    """Whether the use takes what it reads entry by entry, so that these rows are the samples'."""
    return isinstance(use, NodeUse) and slot.shape == tuple(use.node._input_metadata[0].shape)
