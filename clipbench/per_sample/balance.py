"""Samples brought level before their rows are told apart: what is 2⁻²⁴ of another's gradient is rounded away beside it.

Owners are measured on a weighted sum of the losses (see `probe`). Where samples' gradients are of very unequal size,
as after losses of 1e10 and 1e-10, the largest would own every row that they share, and what the others have there
were lost. Weights that are powers of two, read off the rows whose samples are known, bring all to one size first.
What may then be missed of a sample is small beside that sample itself.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from clipbench.per_sample.layout import NOBODY

EVEN = 10
"""Sizes within a factor of 2¹⁰ need no weights: 2⁻²⁴ of the largest is 10⁻⁴ of the smallest."""
CENTRE = 40
"""Nor do sizes between 2⁻⁴⁰ and 2⁴⁰, from which rounding near the ends of the range is far."""
LIMITS = {torch.float16: 6}
"""Largest exponent of a weight; 100 elsewhere."""


class Sizes:
    """Largest entry of every sample's gradients, (n,), among the rows whose sample is known; zero where none is."""

    def __init__(self, n: int) -> None:
        self.values = torch.zeros(n + 1, dtype=torch.float64, device="cpu")  # the last: of rows that are nobody's

    def add(self, marks: Tensor, owners: Tensor) -> None:
        """Take in rows (rows, entries) with their owners (rows,), as given by `probe`."""
        if marks.shape[1] == 0:
            return
        tops = marks.abs().amax(1).double().cpu()
        n = len(self.values) - 1
        known = (owners > NOBODY) & tops.isfinite()
        self.values.scatter_reduce_(0, torch.where(known, owners - 1, n), tops.masked_fill(~known, 0.0), "amax")

    @property
    def samples(self) -> Tensor:
        """(n,)."""
        return self.values[:-1]


def level(weights: Tensor, sizes: Tensor, dtype: torch.dtype) -> Tensor | None:
    """New weights (n,) for sizes (n,) found under the old ones; None where the old ones do.

    A size of zero tells nothing: such a sample keeps its weight.
    """
    exponents = torch.frexp(sizes).exponent[sizes > 0]
    if len(exponents) == 0:
        return None
    low, high = int(exponents.min()), int(exponents.max())
    if high - low <= EVEN and low > -CENTRE and high < CENTRE:
        return None
    limit = LIMITS.get(dtype, 100)
    wanted = torch.frexp(weights).exponent - 1 - torch.frexp(sizes).exponent * (sizes > 0)
    new = torch.tensor(
        [2.0**exponent for exponent in wanted.clamp(-limit, limit).tolist()], dtype=torch.float64, device="cpu"
    )
    return None if torch.equal(new, weights) else new


def largest(marks: Sequence[Tensor]) -> float:
    """The largest finite entry, zero if there is none."""
    found = 0.0
    for rows in marks:
        if rows.numel():
            found = max(found, float(rows.abs().nan_to_num(0.0, 0.0, 0.0).max()))
    return found
