"""Value clipping: every entry on its own."""

from __future__ import annotations

import torch

from clipbench.clipping.base import Clipper, ClipStats, NamedParameters, check_positive, parts, total


class ValueClip(Clipper):
    """Element-wise clipping: g_i ← max(−τ, min(τ, g_i)).

    An entry that is not finite is left as it is, where torch's clip_grad_value_ would turn ∞ into τ and hide the
    divergence; it is not counted as clipped. Of sparse gradients the stored entries count, of DTensors this process's
    in clipped_fraction. Takes model.parameters() as well. Raises ValueError for complex gradients.
    """

    counts_below_layers = True

    def __init__(self, threshold: float) -> None:
        self.threshold = check_positive("threshold", threshold)

    def __call__(self, named_parameters: NamedParameters) -> ClipStats:
        found = parts(named_parameters, real=True)
        norm = total(found.norms())
        clipped = torch.zeros_like(norm)
        for grad in found.local:
            beyond = (grad.abs() > self.threshold) & torch.isfinite(grad)
            clipped = clipped + beyond.sum()
            grad.copy_(torch.where(beyond, grad.clamp(-self.threshold, self.threshold), grad))
        return ClipStats(norm, clipped / max(sum(grad.numel() for grad in found.local), 1))
