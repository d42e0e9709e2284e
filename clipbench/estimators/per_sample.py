"""Clipping every sample's gradient (P1, PS-Clip-SGD)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from clipbench.estimators.base import Estimate
from clipbench.per_sample import PerSampleClipper


@runtime_checkable
class SampleThreshold(Protocol):
    """A rule (k, norms) → τ, all (n,), as `PowerThreshold` and those of `clipbench.estimators.sample_thresholds`."""

    def __call__(self, k: Tensor, norms: Tensor) -> Tensor: ...


@runtime_checkable
class SampleWeight(Protocol):
    """A rule (norms, thresholds) → γ, all (n,); see `clipbench.per_sample.weights`."""

    def __call__(self, norms: Tensor, thresholds: Tensor) -> Tensor: ...


@runtime_checkable
class Stateful(Protocol):
    """A threshold or a weight that remembers, and continues in a resumed run."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


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
        threshold: float | SampleThreshold,
        nonfinite: Literal["drop", "raise"] = "drop",
        weight: SampleWeight | None = None,
    ) -> None:
        rules: dict[str, object] = {"threshold": threshold, "weight": weight}
        self.rules: dict[str, Stateful] = {name: rule for name, rule in rules.items() if isinstance(rule, Stateful)}
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
        return {name: rule.state_dict() for name, rule in self.rules.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, rule in self.rules.items():
            rule.load_state_dict(state[name])


def _finite_mean(values: Tensor) -> Tensor:
    """Mean over the finite entries of `values` (n,): a dropped sample does not end a run, NaN where all are lost."""
    finite = values.isfinite()
    return torch.where(finite, values, 0.0).sum() / finite.sum()
