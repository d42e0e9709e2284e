"""Giving every use its gradient and its layout: proven once for a graph, or measured at every step, never guessed.

For a new graph (see `signature`) owners are proven from its operations (see `dependence`), which holds for all data
and is kept. Uses of which that proves no owner for every row, since rows move by data, are measured at each step (see
`probe`): rows of one sample each give a layout for this step, anything else sends the use's parameters down the slow
path. A proof costs some ten backward passes to the outputs, so that graphs of ever-new shapes are measured instead,
at the price of two to four such passes a step, once proofs have taken their share of the steps.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from clipbench.per_sample.dependence import track_owners, whole
from clipbench.per_sample.graph import Trace
from clipbench.per_sample.layout import Layout, Layouts, RowLayout
from clipbench.per_sample.probe import LOST, Deltas, Probe, backward_to, readable
from clipbench.per_sample.rules import Use
from clipbench.per_sample.signature import signature
from clipbench.per_sample.spelling import Unprovable

Verdict = RowLayout | Literal["measure", "mixed"]
"""A use's proven layout; "measure" where it depends on the data; "mixed" where a row was seen to be shared."""
FREE_PROOFS = 4
"""Proofs for a model's first graphs; then one more is due for so many steps …"""
STEPS_PER_PROOF = 64
HITS_PER_PROOF = 16
"""… and for so many steps that an earlier proof has served."""
KEPT = 256
"""Graphs whose verdicts are kept."""


class Placement:
    """What is known of the layouts of one model's graphs."""

    def __init__(self) -> None:
        self._verdicts: dict[Hashable, list[Verdict]] = {}
        self._probe = Probe()
        self._steps = 0
        self._hits = 0
        self._proofs = 0

    def place(self, losses: Tensor, found: Trace, retain_graph: bool) -> tuple[bool, list[Use]]:
        """Set the layout of every use of `found` and hand it its δ; uses of unknown layout become slow.

        Returns whether the graph is a new one, and the uses whose rows samples share: then nothing was handed out, the
        graph is kept, and the walk has to pass these on. Raises ValueError where samples mix in every use.
        """
        self._steps += 1
        n = losses.shape[0]
        key: Hashable = (signature(found.nodes), found.version, *[use.axes for use in found.uses]) if n > 1 else n
        known = self._verdicts.get(key)
        self._hits += known is not None
        verdicts = known if known is not None else self._judge(losses, found.uses, key)
        shared = [use for use, verdict in zip(found.uses, verdicts, strict=True) if verdict == "mixed"]
        unknown: list[Use] = []
        open_ones = "measure" in verdicts
        if open_ones and not readable(losses):
            shared = [use for use, verdict in zip(found.uses, verdicts, strict=True) if isinstance(verdict, str)]
            open_ones = False
        uses = found.uses
        again = retain_graph or open_ones or bool(shared) or bool(found.slow) or any(use.whole_graph for use in uses)
        deltas = backward_to(uses, losses, torch.ones_like(losses), again) if uses and not shared else []
        if open_ones and not shared:
            verdicts, shared, unknown = self._measure(losses, uses, deltas, verdicts)
        refuse_mixed(verdicts, uses, n)
        if shared:
            return known is None, shared
        for use, verdict in zip(uses, verdicts, strict=True):
            if not isinstance(verdict, str):
                use.layout = verdict
        found.uses = [use for use, part in zip(uses, deltas, strict=True) if use.receive(part)]
        found.reject([slot for use in unknown for slot in use.slots.values()], "its rows are not finite")
        return known is None, []

    def _judge(self, losses: Tensor, uses: Sequence[Use], key: Hashable) -> list[Verdict]:
        """Verdicts on a new graph, kept if there was a proof."""
        if losses.shape[0] == 1 or not uses:
            return [Layout.MAJOR] * len(uses)
        due = FREE_PROOFS + self._hits // HITS_PER_PROOF + self._steps // STEPS_PER_PROOF
        if self._proofs >= due and readable(losses):
            return ["measure"] * len(uses)
        self._proofs += 1
        verdicts = prove(losses, uses)
        if len(self._verdicts) >= KEPT:
            del self._verdicts[next(iter(self._verdicts))]
        self._verdicts[key] = verdicts
        return verdicts

    def _measure(
        self, losses: Tensor, uses: Sequence[Use], deltas: Deltas, verdicts: list[Verdict]
    ) -> tuple[list[Verdict], list[Use], list[Use]]:
        """This step's verdicts, the uses with rows that are shared, and those with rows that cannot be known."""
        at = [index for index, verdict in enumerate(verdicts) if verdict == "measure"]
        owners = self._probe.owners(losses, [uses[i] for i in at], [deltas[i] for i in at])
        layouts = Layouts(losses.shape[0])
        result = list(verdicts)
        shared: list[Use] = []
        unknown: list[Use] = []
        for index, found in zip(at, owners, strict=True):
            use = uses[index]
            layout = layouts.find(use.owners_of_rows(found))
            if layout is not None:
                result[index] = layout
                continue
            result[index] = "mixed"
            (unknown if bool((found == LOST).any()) else shared).append(use)
        return result, shared, unknown


def prove(losses: Tensor, uses: Sequence[Use]) -> list[Verdict]:
    """Layouts that hold for all data, and "measure" where there is no proof."""
    n = losses.shape[0]
    edges = [edge for use in uses for edge in use.edges]
    try:
        owners = track_owners(losses, edges)
    except Unprovable:
        return ["measure"] * len(uses)
    layouts, at = Layouts(n), 0
    verdicts: list[Verdict] = []
    with _disable_current_modes():  # owners have values even where nothing else has
        for use in uses:
            rows = whole(use.marks(owners[at : at + len(use.edges)])).cpu()
            at += len(use.edges)
            verdicts.append(layouts.find(use.owners_of_rows(rows)) or "measure")
    return verdicts


def refuse_mixed(verdicts: Sequence[Verdict], uses: Sequence[Use], n: int) -> None:
    """Raise ValueError where the samples mix in every use, and one that takes data shows their axis.

    A table that is read by position is no such use.
    """
    if all(v == "mixed" for v in verdicts) and any(use.shows_samples and n in use.lead for use in uses):
        raise ValueError(
            "losses must depend on one sample each, got losses that mix samples: the gradient of one of them reaches "
            "the others' rows in every layer (a batch statistic, a contrastive loss, or the mean taken too early?)"
        )
