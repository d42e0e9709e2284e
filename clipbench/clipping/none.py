"""No clipping: plain SGD in the place of a clipper."""

from __future__ import annotations

import torch

from clipbench.clipping.base import Clipper, ClipStats, NamedParameters, gradients, norms


class NoClip(Clipper):
    """Leaves every gradient as it is and measures its norm."""

    def __call__(self, named_parameters: NamedParameters) -> ClipStats:
        norm = torch.linalg.vector_norm(norms(gradients(named_parameters)[1]))
        return ClipStats(norm, torch.zeros_like(norm))
