"""Giving every use its gradient and its layout: proven once for a graph, or measured at every step, never guessed.

A per-sample gradient is read off δ, the gradient of Σ losses, row by row. That is right exactly where each row's δ
comes from one loss alone; whose it is has to be known for ALL rows, of which zero ones are nobody's.

Proven. For a new graph (see `signature`), owners are proven from its operations (see `dependence`), and looked at once,
on this step's gradients. That holds for all data, and is kept: such steps cost nothing more and read nothing from the
device. A proof takes several plain steps' time, so it is made for a model's first graphs, and then as earlier ones have
paid for it.
Measured. Uses of which the graph does not prove every row's owner, since rows move by data (packed sequences, routed
or masked tokens, samples sorted) or by constants that it hides (a write into a part of a tensor), and graphs of
ever-new shapes, are measured at each step, on all samples and rows (see `probe`): rows of one sample each give a layout
for this step. That takes two or three more backward passes to the outputs, and one look at the values.
Otherwise the use's rows are no samples', and its parameters go another way (see `graph`), in the end the slow path,
which is right by definition. So they do where there is no proof and values cannot be read: on tensors without values,
while tracing, and while a CUDA graph is captured. Proofs need no values and are made there too, but for the last.

Both run the backward pass of the graph, and with it hooks that users put on tensors and modules.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from clipbench.per_sample.care import readable
from clipbench.per_sample.hooks import Watch, bypassed
from clipbench.per_sample.layout import Layout, Layouts, RowLayout
from clipbench.per_sample.linearity import check_linear
from clipbench.per_sample.measure import Measurement, rows_by_operations
from clipbench.per_sample.opaque import Nonlinear, functions_above, functions_in
from clipbench.per_sample.probe import LOST, Deltas, Probe, backward_to
from clipbench.per_sample.pullback import nodes_below
from clipbench.per_sample.rules import Use
from clipbench.per_sample.surroundings import HiddenError, seen_by
from clipbench.per_sample.traces import OWN, Trace

Verdict = RowLayout | Literal["measure", "own", "mixed", "lost"]
"""A use's proven layout; "measure" where it depends on the data; "own" below a function of the user's own that need not
be linear, so that samples together tell nothing of each alone. Of one step only: "mixed", where samples share a row,
and "lost", where a row is not finite, so that its owner cannot be known."""
Judge = Callable[[Tensor, Sequence[Use]], list[Verdict]]
UNKNOWN = "its rows move by data, and are not finite or cannot be read"
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
        self._watch = Watch()
        self.hooks = True  # whether there may be some in the graph at hand
        self._functions = Functions()
        self._steps = 0
        self._hits = 0
        self._proofs = 0

    def place(self, losses: Tensor, found: Trace, retain_graph: bool) -> tuple[bool, list[Use]]:
        """Set the layout of every use of `found` and hand it its δ; uses of unknown layout become slow.

        Returns whether the graph is a new one, and the uses whose rows samples share: then nothing was handed out, the
        graph is kept, and the walk has to pass these on.
        """
        self._steps += 1
        n = losses.shape[0]
        self.hooks = self._watch.due(found.uses, found.made)
        key = self._key(found, n)
        if self.hooks:
            key = self._without_bypassed(found, key)
        for use in found.uses:
            use.hooked = self.hooks
        known = None if key is None else self._verdicts.get(key)
        self._hits += known is not None
        verdicts = known if known is not None else self._judge(losses, found.uses, key)
        uses = found.uses
        if known is None and n > 1 and readable(losses) and any(isinstance(v, RowLayout) for v in verdicts):
            verdicts[:] = self._confirmed(losses, uses, verdicts)
        again = retain_graph or any(isinstance(v, str) for v in verdicts) or bool(found.slow)
        again = again or any(use.whole_graph for use in uses)
        deltas = backward_to(uses, losses, torch.ones_like(losses), again) if uses else []
        if self.hooks:
            self._watch.looked()
        open_ones = "measure" in verdicts
        shared: list[Use] = []
        unknown: list[Use] = []
        if open_ones and readable(losses):
            verdicts, shared, unknown = self._measure(losses, uses, deltas, verdicts)
        elif open_ones:
            unknown = [use for use, verdict in zip(uses, verdicts, strict=True) if verdict == "measure"]
        if shared:
            return known is None, shared
        own = [use for use, verdict in zip(uses, verdicts, strict=True) if verdict == "own"]
        for use, verdict in zip(uses, verdicts, strict=True):
            if not isinstance(verdict, str):
                use.layout = verdict
        found.uses = [use for use, part in zip(uses, deltas, strict=True) if use.receive(part)]
        found.reject([slot for use in unknown for slot in use.slots.values()], UNKNOWN)
        found.reject([slot for use in own for slot in use.slots.values()], OWN)
        return known is None, []

    @staticmethod
    def _without_bypassed(found: Trace, key: Hashable) -> Hashable:
        """Make slow what rules would take past hooks; the key of what is left."""
        uses = found.uses
        for use in bypassed(uses):
            found.reject(use.slots.values(), OWN)
        left = {id(use) for use in found.uses}
        return key if key is None or len(left) == len(uses) else (key, *[id(use) in left for use in uses])

    @staticmethod
    def _key(found: Trace, n: int) -> Hashable:
        """What verdicts hold for; None where the graph does not tell."""
        graph = found.signature if n > 1 else "one sample"
        return None if graph is None else (graph, found.version, *[use.axes for use in found.uses])

    def _judge(self, losses: Tensor, uses: Sequence[Use], key: Hashable) -> list[Verdict]:
        """Verdicts on a new graph, kept if there was a proof."""
        if losses.shape[0] == 1 or not uses:
            return [Layout.MAJOR] * len(uses)
        due = FREE_PROOFS + self._hits // HITS_PER_PROOF + self._steps // STEPS_PER_PROOF
        if readable(losses) and (key is None or self._proofs >= due):
            return self._functions.judge(losses, uses) or ["measure"] * len(uses)
        self._proofs += 1
        self._functions.fickle = False
        verdicts = prove(losses, uses) or self._functions.judge(losses, uses) or ["measure"] * len(uses)
        if key is not None and not self._functions.fickle:
            if len(self._verdicts) >= KEPT:
                del self._verdicts[next(iter(self._verdicts))]
            self._verdicts[key] = verdicts
        return verdicts

    def _confirmed(self, losses: Tensor, uses: Sequence[Use], verdicts: Sequence[Verdict]) -> list[Verdict]:
        """New proofs, but "measure" for those that this step's gradients contradict. Keeps the graph.

        Two more backward passes, once for a graph. A proof knows what torch's operations do; this finds an operation
        of which it knows too little.
        """
        proven = {index: verdict for index, verdict in enumerate(verdicts) if not isinstance(verdict, str)}
        some = [uses[index] for index in proven]
        agree = self._probe.agree(losses, some, list(proven.values()))
        right = dict(zip(proven, agree, strict=True))
        return [verdict if right.get(index, True) else "measure" for index, verdict in enumerate(verdicts)]

    def _measure(
        self, losses: Tensor, uses: Sequence[Use], deltas: Deltas, verdicts: list[Verdict]
    ) -> tuple[list[Verdict], list[Use], list[Use]]:
        """This step's verdicts, the uses with rows that are shared, and those with rows that cannot be known."""
        measurement = Measurement(losses, uses, deltas, verdicts)
        owners = measurement.owners(self._probe)
        layouts = Layouts(losses.shape[0])
        result = list(verdicts)
        shared: list[Use] = []
        unknown: list[Use] = []
        for index, found in zip(measurement.open, owners, strict=True):
            use = uses[index]
            layout = layouts.find(use.owners_of_rows(found))
            if layout is not None:
                result[index] = layout
                continue
            lost = bool((found == LOST).any())
            result[index] = "lost" if lost else "mixed"
            (unknown if lost else shared).append(use)
        return result, shared, unknown


def prove(losses: Tensor, uses: Sequence[Use]) -> list[Verdict]:
    """Layouts that hold for all data, "measure" where samples may share rows; empty where there is no proof."""
    try:
        told = rows_by_operations(losses, uses, moving=True)
    except Nonlinear:
        return apart(losses, uses, prove)
    if told is None:
        return []
    layouts = Layouts(losses.shape[0])
    with _disable_current_modes():
        return [layouts.find(use.owners_of_rows(rows)) or "measure" for use, rows in zip(uses, told, strict=True)]


def apart(losses: Tensor, uses: Sequence[Use], judge: Judge) -> list[Verdict]:
    """Verdicts where some function of the user's own need not be linear: of what is not below any, as `judge` says."""
    below = nodes_below({child for node in functions_in(losses) for child, _ in node.next_functions} - {None})
    rest = [use for use in uses if use.node not in below]
    if not below or not rest:  # a hook's doing, or all are
        return ["own"] * len(uses)
    others = iter(judge(losses, rest) or ["measure"] * len(rest))
    return ["own" if use.node in below else next(others) for use in uses]


class Functions:
    """Functions of the user's own, of which it is known that they are linear in their gradients.

    fickle: whether some were found to be so for this step's values alone, at which they looked.
    """

    def __init__(self) -> None:
        self._linear: set[Hashable] = set()
        self.fickle = False

    def judge(self, losses: Tensor, uses: Sequence[Use]) -> list[Verdict]:
        """Verdicts where some are not linear; empty where all are. What hides what it sees is looked at every time."""
        try:
            seen: set[Hashable] = {(type(node), seen_by(node), come) for node, come in functions_above(losses, uses)}
        except HiddenError:
            seen = {None}
        if seen <= self._linear:
            return []
        try:
            for_good = check_linear(losses, [edge for use in uses for edge in use.edges])
        except (Nonlinear, RuntimeError, TypeError, ValueError, AttributeError):  # or cannot be looked at
            return apart(losses, uses, self.judge)
        if not for_good:
            self.fickle = True
            return []
        if len(self._linear) >= KEPT:
            self._linear.clear()
        self._linear |= seen - {None}
        return []
