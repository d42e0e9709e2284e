"""Clipping every sample's gradient (P1, PS-Clip-SGD)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from clipbench.estimators.base import Estimate
from clipbench.per_sample import PerSampleClipper, PowerThreshold


class PerSample:
    """PS-Clip-SGD (Nobile & Grohs 2026): ĝ = (1/n) Σ_k min(1, τ_k/‖g_k‖₂) g_k, k = 1 … n.

    The norm is over all parameters together. τ_k is `threshold`: a number, or α k^{1/β} as `PowerThreshold`;
    k keeps counting over the micro-batches of one optimizer step and starts at 1 in the next.
    """

    def __init__(
        self,
        model: nn.Module,
        threshold: float | PowerThreshold,
        nonfinite: Literal["drop", "raise"] = "drop",
    ) -> None:
        self.clipper = PerSampleClipper(model, threshold, nonfinite=nonfinite)

    def __call__(self, losses: Iterable[Tensor], total: int) -> Estimate:
        """Add ĝ to `.grad`; `losses` yields (n_m,) per micro-batch, `total` = Σ n_m samples."""
        offset = 0
        loss, clipped, dropped, norms = [], [], [], []
        for part in losses:
            stats = self.clipper.backward(part, offset=offset, total=total)
            share = part.numel() / total
            loss.append(part.detach().sum() / total)
            clipped.append(stats.clipped_fraction * share)
            norms.append(stats.norms.mean() * share)
            dropped.append(stats.dropped)
            offset += part.numel()
        return Estimate(
            torch.stack(loss).sum(),
            {
                "clipped_fraction": torch.stack(clipped).sum(),
                "sample_norm": torch.stack(norms).sum(),
                "dropped": torch.stack(dropped).sum(),
            },
        )

    def reseed(self, seed: int) -> None:
        """Nothing is drawn here."""

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """There is no state."""
