"""Norm clipping: one factor for the whole gradient (Pascanu, Mikolov, Bengio, 2013, algorithm 1)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from clipbench.clipping.base import Clipper, ClipStats, NamedParameters, gradients, norms
from clipbench.clipping.selection import check_patterns, matches
from clipbench.clipping.thresholds import Threshold, as_threshold

KEY = "gradient"  # the one name under which an adaptive threshold keeps its state


class NormClip(Clipper):
    """Norm clipping (Pascanu et al., 2013): g ← g · min(1, τ / ‖g‖₂), the norm over ALL parameters together.

    skip: name patterns of parameters that are neither measured nor clipped; none by default.

    No epsilon: a zero norm gives the factor 1. A norm that is not finite leaves the gradient as it is (0 · ∞ would
    make NaN of finite entries), so that divergence shows; such calls are counted in `non_finite`, are not counted as
    clipped, and an adaptive threshold does not see them. The norm is taken in float32 at least.
    """

    def __init__(self, threshold: float | Threshold, skip: Sequence[str] = ()) -> None:
        self.threshold = as_threshold(threshold)
        self.skip = check_patterns(skip)
        self.non_finite = torch.zeros((), dtype=torch.int64)

    def __call__(self, named_parameters: NamedParameters) -> ClipStats:
        names, grads = gradients(named_parameters)
        if self.skip:
            grads = [grad for name, grad in zip(names, grads, strict=True) if not matches(name, self.skip)]
        norm = torch.linalg.vector_norm(norms(grads))
        if not grads:
            return ClipStats(norm, torch.zeros_like(norm))
        tau = self.threshold.current([KEY], norm.device)[0]
        finite = torch.isfinite(norm)
        clipped = finite & (norm > tau)
        torch._foreach_mul_(grads, torch.where(clipped, tau / norm, 1.0))
        self.threshold.update([KEY], norm[None])
        self.non_finite = self.non_finite.to(norm.device) + ~finite
        return ClipStats(norm, clipped.to(norm.dtype))

    def state_dict(self) -> dict[str, Any]:
        return {"threshold": self.threshold.state_dict(), "non_finite": self.non_finite.clone()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.threshold.load_state_dict(state["threshold"])
        self.non_finite = state["non_finite"].clone()
