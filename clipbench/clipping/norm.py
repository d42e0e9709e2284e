"""Norm clipping: one factor for the whole gradient (Pascanu, Mikolov, Bengio, 2013, algorithm 1)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from clipbench.clipping.base import Clipper, ClipStats, NamedParameters, clip_factor, parts, scale_, total
from clipbench.clipping.selection import check_patterns
from clipbench.clipping.thresholds import Threshold, as_threshold

KEY = "gradient"  # the one name under which an adaptive threshold keeps its state


class NormClip(Clipper):
    """Norm clipping (Pascanu et al., 2013): g ← g · min(1, τ / ‖g‖₂), the norm over ALL parameters together.

    No epsilon: a zero norm gives the factor 1. Any finite gradient is clipped, also where squares of its entries leave
    their dtype. A norm that is not finite leaves the gradient as it is (0 · ∞ would make NaN of finite entries), so
    that divergence shows; such calls are counted in `non_finite`, are not counted as clipped, and an adaptive threshold
    does not see them. Sparse gradients are coalesced, complex ones count with both parts, DTensors with all shards.
    Takes model.parameters() as well, unless `skip` (name patterns) leaves some neither measured nor clipped. Under a
    GradScaler gradients are multiplied with its scale, and so is their norm: unscale first, or τ means something else
    at every change of the scale.

    >>> model = torch.nn.Linear(4, 3)
    >>> optimizer, scaler = torch.optim.SGD(model.parameters(), lr=0.1), torch.amp.GradScaler("cpu")
    >>> clip = NormClip(0.5)
    >>> scaler.scale(model(torch.ones(8, 4)).square().sum()).backward()
    >>> scaler.unscale_(optimizer)  # from here on the gradient is the loss's own
    >>> stats = clip(model.named_parameters())
    >>> norm = torch.nn.utils.get_total_norm([parameter.grad for parameter in model.parameters()])
    >>> bool(stats.norm > 0.5), round(float(norm), 4)
    (True, 0.5)
    >>> _ = scaler.step(optimizer), scaler.update()
    """

    def __init__(self, threshold: float | Threshold, skip: Sequence[str] = ()) -> None:
        self.threshold = as_threshold(threshold)
        self.skip = check_patterns(skip)
        self.non_finite = torch.zeros((), dtype=torch.int64)

    def __call__(self, named_parameters: NamedParameters) -> ClipStats:
        found = parts(named_parameters, named=bool(self.skip)).without(self.skip)
        norm = total(found.norms())
        if not found.names:
            return ClipStats(norm, torch.zeros_like(norm))
        tau = self.threshold.at([KEY], norm[None])[0]
        factor = clip_factor(norm, tau)
        scale_(found.local, factor)
        self.threshold.record([KEY], norm[None], tau[None])
        self.non_finite = self.non_finite.to(norm.device) + ~torch.isfinite(norm)
        return ClipStats(norm, (factor != 1).to(norm.dtype))

    def state_dict(self) -> dict[str, Any]:
        return {"threshold": self.threshold.state_dict(), "non_finite": self.non_finite.clone()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.threshold.load_state_dict(state["threshold"])
        self.non_finite = state["non_finite"].clone()
