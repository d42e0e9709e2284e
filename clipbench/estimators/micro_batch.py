"""Clipping each micro-batch's gradient before it is accumulated (P1, claim P1.e)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from clipbench.clipping import Clipper
from clipbench.estimators.base import Estimate


class MicroBatch:
    """Micro-batch clipping (Nobile & Grohs 2026, gradient accumulation): ĝ = (1/M) Σ_m clip(g_m).

    g_m is the mean gradient of micro-batch m alone: each clip sees that micro-batch's own gradient and never
    what was accumulated before it. Micro-batches count equally. A clipper with state (an adaptive threshold)
    sees M gradients a step, one after the other.
    """

    eager = False

    def __init__(self, model: nn.Module, clipper: Clipper) -> None:
        self.parameters = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        self.clipper = clipper

    def __call__(self, losses: Iterable[Tensor], total: int) -> Estimate:
        """Add ĝ to `.grad`; `losses` yields (n_m,) per micro-batch, `total` = Σ n_m samples."""
        before = self._take()
        sums: list[Tensor | None] = [None] * len(self.parameters)
        loss, clipped = [], []
        for part in losses:
            part.mean().backward()
            clipped.append(self.clipper(self.parameters).clipped_fraction)
            loss.append(part.detach().sum() / total)
            sums = [_add(own, new) for own, new in zip(sums, self._take(), strict=True)]
        for (_, parameter), own, old in zip(self.parameters, sums, before, strict=True):
            parameter.grad = _add(old, None if own is None else own.div_(len(loss)))
        return Estimate(torch.stack(loss).sum(), {"micro_batch_clipped_fraction": torch.stack(clipped).mean()})

    def _take(self) -> list[Tensor | None]:
        """The gradients as they are now; `.grad` is empty afterwards."""
        taken = [parameter.grad for _, parameter in self.parameters]
        for _, parameter in self.parameters:
            parameter.grad = None
        return taken

    def reseed(self, seed: int) -> None:
        """Seed the inner clipper's draws for this step."""
        self.clipper.reseed(seed)

    def state_dict(self) -> dict[str, Any]:
        return {"clipper": self.clipper.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.clipper.load_state_dict(state["clipper"])


def _add(own: Tensor | None, new: Tensor | None) -> Tensor | None:
    """own + new in place, where either may be missing."""
    if own is None or new is None:
        return new if own is None else own
    return own.add_(new)
