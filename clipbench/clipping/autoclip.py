"""AutoClip: the global norm against a percentile of all norms so far."""

from __future__ import annotations

import math
from typing import Any

import torch

from clipbench.clipping.base import Clipper, ClipStats, NamedParameters, parts, scale_, total
from clipbench.config.checks import require


class AutoClip(Clipper):
    """AutoClip (Seetharaman et al. 2020, arXiv 2007.14469): τ = p-th percentile of all global norms up to now.

        g ← g · min(1, τ/‖g‖)

    The current norm is one of them. percentile: p in [0, 100], linearly interpolated. The history grows by one number a
    step. A norm that is not finite counts as infinite in it and leaves its own gradient as it is. Raises ValueError
    where percentile is out of range.

        >>> clip, layer = AutoClip(50), torch.nn.Linear(1, 1, bias=False)
        >>> for size in (1.0, 3.0):
        ...     layer.weight.grad = torch.tensor([[size]])
        ...     stats = clip(layer.named_parameters())
        >>> layer.weight.grad
        tensor([[2.]])
    """

    def __init__(self, percentile: float = 10.0) -> None:
        require(0 <= percentile <= 100, "percentile", "in [0, 100]", percentile)
        self.percentile = float(percentile)
        self._history = torch.full((64,), torch.inf, dtype=torch.float64)
        self._count = 0

    def __call__(self, named_parameters: NamedParameters) -> ClipStats:
        found = parts(named_parameters)
        norm = total(found.norms())
        if not found.names:
            return ClipStats(norm, torch.zeros_like(norm))
        finite = torch.isfinite(norm)
        self._record(torch.where(finite, norm, torch.inf))
        tau = self._threshold().to(norm.dtype)
        clipped = finite & (norm > tau)
        scale_(found.local, torch.where(clipped, tau / norm, 1.0))
        return ClipStats(norm, clipped.to(norm.dtype))

    def _record(self, value: torch.Tensor) -> None:
        """Append a value; room is doubled where there is none, so that a step costs little on average."""
        history = self._history.to(value.device, value.dtype)
        if self._count == len(history):
            history = torch.cat([history, torch.full_like(history, torch.inf)])
        history[self._count] = value
        self._history, self._count = history, self._count + 1

    def _threshold(self) -> torch.Tensor:
        seen = self._history[: self._count]
        place = self.percentile / 100 * (self._count - 1)
        low = math.floor(place)
        below = seen.kthvalue(low + 1).values
        above = seen.kthvalue(min(low + 2, self._count)).values
        return torch.where(above > below, torch.lerp(below, above, place - low), below)

    def state_dict(self) -> dict[str, Any]:
        return {"history": self._history[: self._count].clone()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._count = len(state["history"])
        room = torch.full((max(64, self._count),), torch.inf, dtype=state["history"].dtype)
        room[: self._count] = state["history"]
        self._history = room
