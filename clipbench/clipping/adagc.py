"""AdaGC: each parameter's norm against the average of its own clipped norms."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from clipbench.clipping.base import Clipper, ClipStats, NamedParameters, check_positive, parts, scale_, total
from clipbench.clipping.rows import Column, NamedRows
from clipbench.clipping.selection import check_patterns
from clipbench.config.checks import at_least, fraction


class AdaGC(Clipper):
    """AdaGC (Wang et al. 2025, arXiv 2502.11034, algorithm 1).

        t < T_warm-up:  h = min(1, λ_abs/‖g‖) for all;   γ_l ← min(γ_l, ‖h G_l‖)
        else:           h_l = min(1, λ_rel γ_l/‖G_l‖);   γ_l ← βγ_l + (1 − β)‖h_l G_l‖

    relative: λ_rel; absolute: λ_abs; coefficient: β; warmup: T_warm-up, in steps, the first being step 1. skip: name
    patterns of parameters left alone; none by default. A norm that is not finite leaves its gradient as it is and γ_l
    too. Raises ValueError where an option is out of range.
    """

    def __init__(
        self,
        relative: float = 1.05,
        absolute: float = 1.0,
        coefficient: float = 0.98,
        warmup: int = 100,
        skip: Sequence[str] = (),
    ) -> None:
        self.relative, self.absolute = check_positive("relative", relative), check_positive("absolute", absolute)
        fraction("coefficient", coefficient)
        at_least("warmup", warmup, 1)
        self.coefficient, self.warmup = float(coefficient), int(warmup)
        self.skip = check_patterns(skip)
        self._rows = NamedRows(average=Column(torch.float64, math.inf), count=Column(torch.int64, 0))

    def __call__(self, named_parameters: NamedParameters) -> ClipStats:
        found = parts(named_parameters, named=True)
        norm = total(found.norms())
        found = found.without(self.skip)
        if not found.names:
            return ClipStats(norm, torch.zeros_like(norm))
        lengths = found.norms()
        rows = self._rows.select(found.names, norm.device)
        average, count = rows["average"], rows["count"]
        warming = count + 1 < self.warmup
        whole = total(lengths)
        bound = torch.where(warming, self.absolute * (lengths / whole), self.relative * average)
        finite = torch.isfinite(lengths) & torch.isfinite(whole)
        over = torch.where(warming, (whole > self.absolute).expand_as(lengths), lengths > bound)
        clipped = finite & over
        factors = torch.where(clipped & (lengths > 0), bound / lengths, 1.0)
        scale_(found.local, factors)
        kept = lengths * factors
        moved = torch.where(warming, torch.minimum(average, kept), torch.lerp(kept, average, self.coefficient))
        rows["average"] = torch.where(finite, moved, average)
        rows["count"] = count + finite
        return ClipStats(norm, clipped.to(norm.dtype).mean())

    def state_dict(self) -> dict[str, Any]:
        return self._rows.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._rows.load_state_dict(state)
