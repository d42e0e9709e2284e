"""No clipping: plain SGD in the place of a clipper."""

from __future__ import annotations

import torch

from clipbench.clipping.base import Clipper, ClipStats, NamedParameters, pairs


class NoClip(Clipper):
    """Leaves every gradient as it is and does not even measure it: the baseline must not pay for the bench."""

    def __init__(self) -> None:
        self._nothing: torch.Tensor | None = None

    def __call__(self, named_parameters: NamedParameters) -> ClipStats:
        if self._nothing is None:
            first = next((parameter for _, parameter in pairs(named_parameters)), None)
            self._nothing = torch.zeros((), device=None if first is None else first.device)
        return ClipStats(None, self._nothing)
