"""Which sample owns every row of this very step's gradients, read off further backward passes.

Where a layout cannot be proven from the graph alone (rows move by data: packed sequences, experts, masks), it is
measured, at every step, on all samples and rows. The losses are weighted by signed powers of two that spell the
samples' numbers: a row of one sample comes out as its weight times the plain row EXACTLY, entry by entry, for scaling
by a power of two commutes with rounding. Thirty-two weights and ⌈log₃₂ n⌉ passes; the code is drawn anew each time.
One more pass, with real random weights, unmasks sums of several samples that pose as another one (twice sample 0 plus
sample 2, under weights 1 and 4, looks like weight 2) or that cancel. A row that is zero in all passes is nobody's.
Where rounding is too coarse for that last pass (half precisions, entries that cancel within a sample), the rows in
doubt get three more passes of the exact kind.

What cannot be seen is what rounding hides in the gradients themselves: a sample's share of another one's row below
2⁻²⁴ of it (in float32). So samples are brought to one size before (see `balance`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from clipbench.per_sample.hooks import Passing
from clipbench.per_sample.layout import NOBODY, SHARED, RowLayout
from clipbench.per_sample.rules import Use

LOST = -2
"""Owner of a row that is not finite: it cannot be known."""
MIXING = 1e-3
"""Deviation from one sample's weight, relative to a row's largest entry, that rounding does not explain in float32."""
NOISE = 1e-3
"""Share of a use's largest entry below which rows may be what rounding left."""
CODES: dict[bool, tuple[int, int]] = {False: (-8, 8), True: (-1, 3)}
"""Exponents of weights; few for float16, whose range is small."""


Deltas = list[Sequence[Tensor | None]]
"""The gradients at every use's edges."""


def backward_to(uses: Sequence[Use], losses: Tensor, weights: Tensor, retain_graph: bool) -> Deltas:
    """The gradients of Σ_k weights_k · losses_k at the edges of every use, as hooks there leave them."""
    edges = [edge for use in uses for edge in use.edges]
    passing = Passing(uses)
    with passing:
        found = torch.autograd.grad(losses, edges, weights, retain_graph=retain_graph, allow_unused=True)
    parts: Deltas = []
    at = 0
    for use in uses:
        parts.append(passing.changed(use, found[at : at + len(use.edges)]))
        at += len(use.edges)
    return parts


class Code:
    """A signed power of two for each digit, drawn at random."""

    def __init__(self, exponents: tuple[int, int], generator: torch.Generator) -> None:
        self.first, last = exponents
        powers = 2.0 ** torch.arange(self.first, last, device="cpu")
        order = torch.randperm(2 * len(powers), generator=generator, device="cpu")
        self.weights = torch.cat([powers, -powers])[order]
        self._digits = torch.argsort(order)

    def nearest(self, ratios: Tensor) -> Tensor:
        """The digit whose weight is nearest in size to each ratio; any for one that is not finite."""
        count = len(self.weights) // 2
        level = (ratios.abs().log2().round() - self.first).nan_to_num(0.0).clamp(0, count - 1)
        return self._digits.to(ratios.device)[level.long() + count * (ratios < 0)]


class Rows:
    """The rows of one use under test: what is known of their owners so far."""

    def __init__(self, use: Use, deltas: Sequence[Tensor | None]) -> None:
        self.plain = use.marks(deltas)
        rows, entries = self.plain.shape
        if entries:
            self.top, self.at = self.plain.abs().max(1)  # a row's largest entry, and where it is
        else:
            self.top = self.plain.new_zeros(rows)
        self.lost = ~self.top.isfinite()
        self.shared = torch.zeros_like(self.lost)
        self.doubtful = torch.zeros_like(self.lost)
        self.active = torch.zeros_like(self.lost)
        self.number = torch.zeros(self.top.shape, dtype=torch.int64, device=self.top.device)

    def follows(self, marks: Tensor, weights: Tensor) -> Tensor:
        """Whether every entry of a row is its weight (rows,) times the plain one, up to what no rounding explains."""
        scaled = weights[:, None] * self.plain
        same = (marks == scaled).all(1)
        if bool(same.all()):
            return same
        limits, size = torch.finfo(marks.dtype), weights.abs()[:, None]
        bound = 4 * limits.eps * self.plain.abs()
        if marks.device.type != "cpu":  # sums in no fixed order
            bound = torch.maximum(bound, 512 * limits.eps * self.top[:, None])
        floor = limits.tiny * 2**26  # below it numbers lose digits
        return ((marks - scaled).abs() <= bound * size + floor * size.clamp(min=1.0)).all(1)

    def read_digit(self, marks: Tensor, code: Code) -> None:
        """Append a digit to every row's number."""
        if marks.shape[1] == 0:
            return
        at = self.at[:, None]
        digit = code.nearest((marks.gather(1, at) / self.plain.gather(1, at))[:, 0])
        self.active |= (marks != 0).any(1)
        self.shared |= ~self.follows(marks, code.weights.to(marks)[digit])
        self.number = self.number * len(code.weights) + digit

    def confirm(self, marks: Tensor, weights: Tensor) -> None:
        """Compare with real weights (n,); only what is far off counts, and is in doubt."""
        known = self.number.clamp(max=weights.shape[0] - 1)
        difference = (marks - weights[known][:, None] * self.plain).abs_()
        self.doubtful = ~(difference <= MIXING * self.top[:, None]).all(1)  # so written, true for NaN

    def confirm_exactly(self, marks: Tensor, weights: Tensor) -> None:
        """Compare with powers of two (n,), for the rows in doubt."""
        self.shared |= self.doubtful & ~self.follows(marks, weights[self.number.clamp(max=weights.shape[0] - 1)])

    def owners(self, n: int) -> Tensor:
        """(rows,) int64: k + 1, NOBODY, SHARED or LOST."""
        unknown = self.shared | (self.number >= n) & (self.top > 0)
        owners = torch.where(unknown, SHARED, self.number + 1)
        owners = torch.where((self.top == 0) & ~self.active & ~self.shared, NOBODY, owners)
        return torch.where(self.lost, LOST, owners)


class Probe:
    """Draws the weights; has a generator of its own, so that no other random stream moves."""

    def __init__(self) -> None:
        self._generator = torch.Generator().manual_seed(0)
        self._under = torch.ones(1, device="cpu")

    def owners(self, losses: Tensor, uses: Sequence[Use], deltas: Deltas, under: Tensor | None = None) -> list[Tensor]:
        """Owners of the rows of every use (see `Use.marks`), on the CPU. Keeps the graph.

        `deltas` are those under the weights `under` (n,), powers of two (None: ones); see `balance`.
        """
        n = losses.shape[0]
        self._under = torch.ones(n, device="cpu") if under is None else under
        rows = [Rows(use, found) for use, found in zip(uses, deltas, strict=True)]
        kinds = {delta.dtype for found in deltas for delta in found if delta is not None} | {losses.dtype}
        exponents = CODES[torch.float16 in kinds]
        base = 2 * (exponents[1] - exponents[0])
        names = torch.randperm(n, generator=self._generator, device="cpu")  # whose number is whose
        count = max(1, math.ceil(math.log(n, base) - 1e-9))
        for place in reversed(range(count)):
            code = Code(exponents, self._generator)
            weights = code.weights[names // base**place % base]
            for row, marks in zip(rows, self._marks(losses, uses, weights), strict=True):
                row.read_digit(marks, code)
        whose = torch.argsort(names)
        for row in rows:
            safe = row.number.clamp(max=n - 1)
            row.number = torch.where(row.number < n, whose.to(safe.device)[safe], row.number)
        real = torch.empty(n, device="cpu").uniform_(0.5, 2.0, generator=self._generator) * self._signs(n)
        for row, marks in zip(rows, self._marks(losses, uses, real), strict=True):
            row.confirm(marks, real.to(marks))
        if bool(torch.stack([row.doubtful.any() for row in rows]).any()):
            for _ in range(3):
                weights = Code(exponents, self._generator).weights[self._digits(n, base)]
                for row, marks in zip(rows, self._marks(losses, uses, weights), strict=True):
                    row.confirm_exactly(marks, weights.to(marks))
        sizes = [len(row.top) for row in rows]
        return list(torch.cat([row.owners(n) for row in rows]).cpu().split(sizes))

    def agree(self, losses: Tensor, uses: Sequence[Use], layouts: Sequence[RowLayout]) -> list[bool]:
        """Whether rows of every use stay or go with the samples that its layout says, where some are left out.

        That holds also of functions of single entries that are not linear. Keeps the graph.
        """
        n = losses.shape[0]
        weights = (torch.randperm(n, generator=self._generator, device="cpu") < (n + 1) // 2).double()
        self._under = torch.ones(n, device="cpu")
        result = []
        whole, part = self._marks(losses, uses, self._under), self._marks(losses, uses, weights)
        for use, layout, plain, marks in zip(uses, layouts, whole, part, strict=True):
            # a layer whose rows are a batch's members, all steps together, tells owners of each step after another
            own = layout.spread(weights.to(plain), use.rows)[: len(plain), None]
            if plain.numel():
                size = torch.maximum(plain.abs().amax(1, keepdim=True), NOISE * plain.abs().max())
                wrong = (marks - own * plain).abs() > MIXING * size
                result.append(not bool((wrong & plain.isfinite() & marks.isfinite()).any()))
            else:
                result.append(True)
        return result

    def _digits(self, n: int, base: int) -> Tensor:
        return torch.randint(base, (n,), generator=self._generator, device="cpu")

    def _signs(self, n: int) -> Tensor:
        return torch.randint(2, (n,), generator=self._generator, device="cpu") * 2.0 - 1.0

    def _marks(self, losses: Tensor, uses: Sequence[Use], weights: Tensor) -> list[Tensor]:
        found = backward_to(uses, losses, (weights * self._under).to(losses), retain_graph=True)
        return [use.marks(deltas) for use, deltas in zip(uses, found, strict=True)]
