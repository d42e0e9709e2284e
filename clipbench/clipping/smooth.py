"""Smoothed clipping, δ-clipping and error feedback: other shapes than min(1, τ/‖g‖) for the whole gradient."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from clipbench.clipping.base import (
    Clipper,
    ClipStats,
    NamedParameters,
    check_positive,
    gradients,
    pairs,
    parts,
    scale_,
    total,
)
from clipbench.config.checks import require


class SmoothClip(Clipper):
    """Smoothed clipping (arXiv 2310.16920 and others): g ← g τ/(‖g‖ + τ), so ‖g‖ < τ without a kink.

    The norm is over all parameters together. Every step is scaled; `clipped_fraction` counts those whose norm exceeds
    τ. A norm that is not finite leaves the gradient as it is. Raises ValueError where threshold is not > 0.

        >>> layer = torch.nn.Linear(2, 1, bias=False)
        >>> layer(torch.tensor([[3.0, 4.0]])).sum().backward()
        >>> stats = SmoothClip(5.0)(layer.named_parameters())
        >>> layer.weight.grad
        tensor([[1.5000, 2.0000]])
    """

    acts_below_threshold = True

    def __init__(self, threshold: float) -> None:
        self.threshold = check_positive("threshold", threshold)

    def __call__(self, named_parameters: NamedParameters) -> ClipStats:
        found = parts(named_parameters)
        norm = total(found.norms())
        finite = torch.isfinite(norm)
        scale_(found.local, torch.where(finite, 1.0 / (norm / self.threshold + 1.0), 1.0))
        return ClipStats(norm, (finite & (norm > self.threshold)).to(norm.dtype))


class DeltaClip(Clipper):
    """δ-GClip (Tucat et al. 2024, arXiv 2404.08624): g ← g min(1, max(δ, τ/‖g‖)), norm clipping that never stops.

    A gradient is scaled down by δ at most, which is what the paper's proof of convergence for deep networks needs.
    least: δ in [0, 1); 0 is norm clipping. A norm that is not finite leaves the gradient as it is. Raises ValueError
    where threshold is not > 0 or least not in [0, 1).
    """

    def __init__(self, threshold: float, least: float = 1e-3) -> None:
        self.threshold = check_positive("threshold", threshold)
        require(0 <= least < 1, "least", "in [0, 1)", least)
        self.least = float(least)

    def __call__(self, named_parameters: NamedParameters) -> ClipStats:
        found = parts(named_parameters)
        norm = total(found.norms())
        clipped = torch.isfinite(norm) & (norm > self.threshold)
        factor = torch.where(clipped, (self.threshold / norm).clamp_min(self.least), 1.0)
        scale_(found.local, factor)
        return ClipStats(norm, clipped.to(norm.dtype))


class ErrorFeedback(Clipper):
    """What a clipper takes off is added to the next gradient: u = C(g + Δ), Δ ← g + Δ − u.

    With norm or value clipping as `clipper` this is U-Clip (Elesedy, Hutter 2023, arXiv 2302.02971, algorithm 1); with
    smoothed clipping, clipping with error feedback (arXiv 2310.16920). The carried Δ is a buffer of each parameter's
    size. A carry that is not finite is dropped, so that one lost step does not poison all later ones.
    """

    def __init__(self, clipper: Clipper) -> None:
        self.clipper = clipper
        self._carried: dict[str, Tensor] = {}

    def __call__(self, named_parameters: NamedParameters) -> ClipStats:
        named = list(pairs(named_parameters, named=True))
        names, grads = gradients(named)
        for name, grad in zip(names, grads, strict=True):
            if name in self._carried:
                grad.add_(self._carried[name].to(grad.device))
        before = [grad.clone() for grad in grads]
        stats = self.clipper(named)
        for name, grad, whole in zip(names, grads, before, strict=True):
            left = whole.sub_(grad)
            self._carried[name] = torch.where(torch.isfinite(left), left, 0.0)
        return stats

    def reseed(self, seed: int) -> None:
        self.clipper.reseed(seed)

    def layer_stats(self) -> dict[str, dict[str, Tensor]]:
        return self.clipper.layer_stats()

    def state_dict(self) -> dict[str, Any]:
        carried = {name: tensor.clone() for name, tensor in self._carried.items()}
        return {"clipper": self.clipper.state_dict(), "carried": carried}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.clipper.load_state_dict(state["clipper"])
        self._carried = {name: tensor.clone() for name, tensor in state["carried"].items()}
