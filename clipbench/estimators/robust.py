"""Robust means of the micro-batches' gradients: the coordinate-wise median, and the medoid."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from clipbench.estimators.base import Estimate


class RobustMicroBatches(ABC):
    """Forms the gradients g_1 … g_M of a step's micro-batches, each by itself, and combines them; all M are held."""

    eager = False

    def __init__(self, model: nn.Module) -> None:
        self.parameters = [p for p in model.parameters() if p.requires_grad]

    @abstractmethod
    def combine(self, stacked: list[Tensor]) -> list[Tensor]:
        """One gradient of each parameter from (M, *shape)."""

    def __call__(self, losses: Iterable[Tensor], total: int) -> Estimate:
        """Add the combined gradient to `.grad`; `losses` yields (n_m,) per micro-batch, `total` = Σ n_m samples."""
        found: list[list[Tensor]] = []
        loss: list[Tensor] = []
        for part in losses:
            grads = torch.autograd.grad(part.mean(), self.parameters, allow_unused=True)
            found.append([torch.zeros_like(p) if g is None else g for p, g in zip(self.parameters, grads, strict=True)])
            loss.append(part.detach().sum() / total)
        if not found:
            raise ValueError("losses must hold at least one micro-batch, got none")
        combined = self.combine([torch.stack(parts) for parts in zip(*found, strict=True)])
        for parameter, gradient in zip(self.parameters, combined, strict=True):
            parameter.grad = gradient if parameter.grad is None else parameter.grad.add_(gradient)
        return Estimate(torch.stack(loss).sum(), {})

    def reseed(self, seed: int) -> None:
        """Nothing is drawn here."""

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """There is no state."""


class MedianOfMicroBatches(RobustMicroBatches):
    """Coordinate-wise median of the micro-batches' gradients (Puchkin et al. 2024, arXiv 2402.12828).

    ĝ_i = median_m (g_m)_i. For an even M it is the mean of the two middle values; the paper takes M odd. A coordinate
    with a NaN in any micro-batch is NaN. M comes from `accumulation`; with M = 1 this is the plain gradient.
    """

    acts_below_threshold = True

    def combine(self, stacked: list[Tensor]) -> list[Tensor]:
        return [_median(parts) for parts in stacked]


def _median(parts: Tensor) -> Tensor:
    ordered = parts.sort(dim=0).values  # NaN sorts last, and would hide
    count = len(parts)
    middle = (ordered[(count - 1) // 2] + ordered[count // 2]) / 2
    return torch.where(parts.isnan().any(0), torch.nan, middle)


class MedoidOfMicroBatches(RobustMicroBatches):
    """The micro-batch's gradient that is nearest to all others (arXiv 2605.07634).

    ĝ = g_j,  j = argmin_j Σ_m ‖g_j − g_m‖₂, over all parameters together; the first of equals. One whose distances are
    not finite is taken last. With M ≤ 2 all are alike, and the first is taken.
    """

    acts_below_threshold = True

    def combine(self, stacked: list[Tensor]) -> list[Tensor]:
        flat = torch.cat([parts.flatten(1) for parts in stacked], dim=1)
        promoted = flat if flat.dtype == torch.float64 else flat.float()
        gaps = torch.stack([torch.linalg.vector_norm(promoted - row, dim=1) for row in promoted])
        # A lost micro-batch is infinitely far from all; leaving its column out keeps the others comparable.
        lost = ~torch.isfinite(promoted).all(dim=1)
        sums = torch.where(lost[None, :], 0.0, gaps).sum(dim=1)
        best = torch.where(lost, torch.inf, sums).argmin()
        return [parts.index_select(0, best[None]).squeeze(0) for parts in stacked]
