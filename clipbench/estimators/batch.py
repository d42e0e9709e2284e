"""The plain estimator: the mean of all samples' gradients."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from clipbench.estimators.base import Estimate


class Batch:
    """Mini-batch gradient, ĝ = (1/n) Σ_k g_k, over all samples of all micro-batches of the step."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def __call__(self, losses: Iterable[Tensor], total: int) -> Estimate:
        """Add ĝ to `.grad`; `losses` yields (n_m,) per micro-batch, `total` = Σ n_m samples."""
        parts = []
        for part in losses:
            loss = part.sum() / total
            loss.backward()
            parts.append(loss.detach())
        return Estimate(torch.stack(parts).sum(), {})

    def reseed(self, seed: int) -> None:
        """Nothing is drawn here."""

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """There is no state."""
