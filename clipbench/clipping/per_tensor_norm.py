"""Norm clipping of each parameter's gradient on its own: the control for spectral clipping."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from clipbench.clipping.base import Clipper, ClipStats, NamedParameters, clip_factor, parts, scale_, total
from clipbench.clipping.selection import SKIP, SKIP_TYPES, check_patterns, skipped
from clipbench.clipping.thresholds import Threshold, as_threshold


class PerTensorNorm(Clipper):
    """Per-tensor norm clipping: G_l ← G_l · min(1, τ_l / ‖G_l‖₂) for every parameter l by itself.

    Spectral clipping's control: layer-wise like it, but a layer keeps the shape of its spectrum. threshold: one number
    for all, or a rule that adapts to each parameter's past norms. A zero norm gives the factor 1; a gradient whose norm
    is not finite is left as it is, not counted as clipped and not shown to the threshold. skip: name patterns of
    parameters left alone, as for SpectralClip.

    >>> layer = torch.nn.Linear(2, 1)
    >>> layer(torch.tensor([[3.0, 4.0]])).sum().backward()
    >>> stats = PerTensorNorm(0.5)(layer.named_parameters())
    >>> layer.weight.grad.norm(), layer.bias.grad, float(stats.clipped_fraction)
    (tensor(0.5000), tensor([0.5000]), 1.0)
    """

    def __init__(self, threshold: float | Threshold, skip: Sequence[str] = SKIP) -> None:
        self.threshold = as_threshold(threshold)
        self.skip = check_patterns(skip)

    @classmethod
    def for_model(
        cls,
        model: nn.Module,
        threshold: float | Threshold,
        skip: Sequence[str] = SKIP,
        skip_types: Sequence[str] = SKIP_TYPES,
    ) -> PerTensorNorm:
        """The same for `model`; also skips the parameters of modules of these classes, by name."""
        return cls(threshold, skipped(model, skip, skip_types))

    def __call__(self, named_parameters: NamedParameters) -> ClipStats:
        every = parts(named_parameters, named=True)
        norm, found = total(every.norms()), every.without(self.skip)
        if not found.names:
            return ClipStats(norm, torch.zeros_like(norm))
        lengths = found.norms()
        tau = self.threshold.at(found.names, lengths)
        scale_(found.local, clip_factor(lengths, tau))
        self.threshold.record(found.names, lengths, tau)
        return ClipStats(norm, (torch.isfinite(lengths) & ~(lengths <= tau)).to(norm.dtype).mean())

    def state_dict(self) -> dict[str, Any]:
        return {"threshold": self.threshold.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.threshold.load_state_dict(state["threshold"])
