"""The plain estimator: the mean of all samples' gradients."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

from torch import Tensor, nn

from clipbench.config.checks import one_of
from clipbench.estimators.base import Estimate


class Batch:
    """Mini-batch gradient, ĝ = (1/n) Σ_k g_k, over all samples of all micro-batches of the step.

    reduction: "sum" gives Σ_k g_k, for rates and thresholds that are meant for summed losses (paper 2, CIFAR-10); the
    loss in the estimate stays the mean. Raises ValueError for another word.
    """

    eager = False

    def __init__(self, model: nn.Module, reduction: Literal["mean", "sum"] = "mean") -> None:
        one_of("reduction", reduction, ("mean", "sum"))
        self.model = model
        self.reduction = reduction

    def __call__(self, losses: Iterable[Tensor], total: int) -> Estimate:
        """Add ĝ to `.grad`; `losses` yields (n_m,) per micro-batch, `total` = Σ n_m samples."""
        loss: Tensor | None = None
        for part in losses:
            if self.reduction == "mean" and len(part) == total:
                mean = part.mean()
                mean.backward()
            else:
                summed = part.sum()
                mean = summed / total
                (summed if self.reduction == "sum" else mean).backward()
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
