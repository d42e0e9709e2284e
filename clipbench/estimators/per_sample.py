"""Clipping every sample's gradient (P1, PS-Clip-SGD)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from clipbench.estimators.base import Estimate
from clipbench.estimators.sample_thresholds import SampleEma, SampleQuantile, SampleShare
from clipbench.per_sample import PerSampleClipper, PowerThreshold


class SampleWeight(Protocol):
    """A rule (norms, thresholds) → γ, all (n,); see `clipbench.per_sample.weights`."""

    def __call__(self, norms: Tensor, thresholds: Tensor) -> Tensor: ...


class PerSample:
    """PS-Clip-SGD (Nobile & Grohs 2026): ĝ = (1/n) Σ_k min(1, τ_k/‖g_k‖₂) g_k, k = 1 … n.

    The norm is over all parameters together. τ_k is `threshold`: a number, or α k^{1/β} as `PowerThreshold`;
    k keeps counting over the micro-batches of one optimizer step and starts at 1 in the next. `SampleEma` and
    `SampleQuantile` follow the norms of past samples. `weight` is another rule than min(1, τ/‖g‖), as
    `AutomaticWeight`.
    """

    eager = True

    def __init__(
        self,
        model: nn.Module,
        threshold: float | PowerThreshold | SampleEma | SampleQuantile | SampleShare,
        nonfinite: Literal["drop", "raise"] = "drop",
        weight: SampleWeight | None = None,
    ) -> None:
        self.rule = threshold if isinstance(threshold, SampleEma | SampleQuantile | SampleShare) else None
        self.clipper = PerSampleClipper(model, threshold, weight, nonfinite)

    def __call__(self, losses: Iterable[Tensor], total: int) -> Estimate:
        """Add ĝ to `.grad`; `losses` yields (n_m,) per micro-batch, `total` = Σ n_m samples."""
        offset = 0
        values, norms, clipped, dropped = [], [], [], []
        for part in losses:
            stats = self.clipper.backward(part, offset=offset, total=total)
            values.append(part.detach())
            norms.append(stats.norms)
            clipped.append(stats.clipped_fraction * (part.numel() / total))
            dropped.append(stats.dropped)
            offset += part.numel()
        return Estimate(
            _finite_mean(torch.cat(values)),
            {
                "sample_clipped_fraction": torch.stack(clipped).sum(),
                "sample_norm": _finite_mean(torch.cat(norms)),
                "dropped": torch.stack(dropped).sum(),
            },
        )

    def reseed(self, seed: int) -> None:
        """Nothing is drawn here."""

    def state_dict(self) -> dict[str, Any]:
        return {} if self.rule is None else {"threshold": self.rule.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if self.rule is not None:
            self.rule.load_state_dict(state["threshold"])


def _finite_mean(values: Tensor) -> Tensor:
    """Mean over the finite entries of `values` (n,): a dropped sample does not end a run, NaN where all are lost."""
    finite = values.isfinite()
    return torch.where(finite, values, 0.0).sum() / finite.sum()
