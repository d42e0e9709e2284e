"""ZClip: the global norm against its own mean and spread."""

from __future__ import annotations

from typing import Any

import torch

from clipbench.clipping.base import Clipper, ClipStats, NamedParameters, check_positive, parts, scale_, total
from clipbench.config.checks import at_least, fraction


class ZClip(Clipper):
    """ZClip (Kumar et al. 2025, arXiv 2504.02507), z-score with adaptive scaling.

        z = (‖g‖ − μ)/(σ + ε);   where z > z_t:   ‖g‖ → μ + z_t² σ/z
        μ ← αμ + (1 − α) n,   σ² ← ασ² + (1 − α)(n − μ)²,   n the norm after that rule

    The first `warmup` norms are collected, μ and σ are their mean and (population) spread, and until then the norm is
    only bounded by `most`, as it also is afterwards (infinity: not at all; the norm that is fed back is taken before
    that bound, as in the authors' code). coefficient: α; score: z_t; eps: ε. A norm that is not finite leaves the
    gradient as it is and is not taken in. Raises ValueError where an option is out of range.
    """

    def __init__(
        self, coefficient: float = 0.97, score: float = 2.5, warmup: int = 25, most: float = 1.0, eps: float = 1e-6
    ) -> None:
        fraction("coefficient", coefficient)
        at_least("warmup", warmup, 1)
        self.coefficient, self.warmup = float(coefficient), int(warmup)
        self.score, self.most = check_positive("score", score), check_positive("most", most)
        self.eps = check_positive("eps", eps)
        # While warming up, mean and spread are Welford's running ones: the same as of the collected norms.
        self.mean = torch.zeros((), dtype=torch.float64)
        self.variance = torch.zeros((), dtype=torch.float64)
        self.count = torch.zeros((), dtype=torch.int64)

    def __call__(self, named_parameters: NamedParameters) -> ClipStats:
        found = parts(named_parameters)
        norm = total(found.norms())
        if not found.names:
            return ClipStats(norm, torch.zeros_like(norm))
        mean, variance, count = (t.to(norm.device) for t in (self.mean, self.variance, self.count))
        finite = torch.isfinite(norm)
        ready = count >= self.warmup
        spread = variance.sqrt()
        z = (norm - mean) / (spread + self.eps)
        outlier = ready & (z > self.score)
        kept = torch.where(outlier, mean + self.score**2 * spread / z, norm)
        bound = kept.clamp_max(self.most)
        clipped = finite & (norm > bound)
        scale_(found.local, torch.where(clipped, bound / norm, 1.0))
        self._take_in(kept, finite, ready, mean, variance, count)
        return ClipStats(norm, clipped.to(norm.dtype))

    def _take_in(
        self,
        kept: torch.Tensor,
        finite: torch.Tensor,
        ready: torch.Tensor,
        mean: torch.Tensor,
        variance: torch.Tensor,
        count: torch.Tensor,
    ) -> None:
        share = torch.where(ready, 1 - self.coefficient, 1.0 / (count + 1))
        moved = mean + share * (kept - mean)
        # Running: the deviation from the new mean, as in the authors' code; warming up: Welford's product of both.
        deviation = torch.where(ready, (kept - moved).square(), (kept - moved) * (kept - mean))
        spread = variance + share * (deviation - variance)
        self.mean = torch.where(finite, moved, mean)
        self.variance = torch.where(finite, spread, variance)
        self.count = count + finite

    def state_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name).clone() for name in ("mean", "variance", "count")}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.mean, self.variance, self.count = (state[name].clone() for name in ("mean", "variance", "count"))
