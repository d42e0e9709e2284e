"""Value clipping: every entry on its own."""

from __future__ import annotations

import torch

from clipbench.clipping.base import Clipper, ClipStats, NamedParameters, check_positive, gradients, norms


class ValueClip(Clipper):
    """Element-wise clipping: g_i ← max(−τ, min(τ, g_i)).

    An entry that is not finite is left as it is, where torch's clip_grad_value_ would turn ∞ into τ and hide the
    divergence; it is not counted as clipped.
    """

    def __init__(self, threshold: float) -> None:
        self.threshold = check_positive("threshold", threshold)

    def __call__(self, named_parameters: NamedParameters) -> ClipStats:
        grads = gradients(named_parameters)[1]
        norm = torch.linalg.vector_norm(norms(grads))
        clipped = torch.zeros_like(norm)
        for grad in grads:
            beyond = (grad.abs() > self.threshold) & torch.isfinite(grad)
            clipped = clipped + beyond.sum()
            grad.copy_(torch.where(beyond, grad.clamp(-self.threshold, self.threshold), grad))
        return ClipStats(norm, clipped / max(sum(grad.numel() for grad in grads), 1))
