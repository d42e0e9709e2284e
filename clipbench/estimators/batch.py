"""The plain estimator: the mean of all samples' gradients."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

from clipbench.estimators.base import Estimate


class Batch:
    """Mini-batch gradient, ĝ = (1/n) Σ_k g_k, over all samples of all micro-batches of the step."""

    eager = False

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def __call__(self, losses: Iterable[Tensor], total: int) -> Estimate:
        """Add ĝ to `.grad`; `losses` yields (n_m,) per micro-batch, `total` = Σ n_m samples."""
        loss: Tensor | None = None
        for part in losses:
            mean = part.mean() if len(part) == total else part.sum() / total
            mean.backward()
            loss = mean.detach() if loss is None else loss + mean.detach()
        if loss is None:
            raise ValueError("losses must hold at least one micro-batch, got none")
        return Estimate(loss, {})

    def reseed(self, seed: int) -> None:
        """Nothing is drawn here."""

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """There is no state."""
