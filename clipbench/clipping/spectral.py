"""Spectral clipping: each layer's singular values."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn

from clipbench.clipping.layers import LayerClip
from clipbench.clipping.selection import SKIP, SKIP_TYPES, skipped
from clipbench.clipping.thresholds import Threshold
from clipbench.spectral import BACKENDS, SpectralReport, check_setting, clip_matrices_, gather, randomized_one_


class SpectralClip(LayerClip):
    """Spectral clipping (arXiv 2605.11838): G = U diag(s) Vᵀ ← U diag(min(s, τ)) Vᵀ, layer by layer.

    backend: see clipbench.spectral.clip_singular_values; `auto` depends on shape, dtype, device type and on whether
    the threshold adapts, on no value. rank, oversample, iterations: of backend `randomized`; with a rank the paper's
    truncated SVD, cold at every step; without one the adaptive form, warm-started from the layer's last call (its
    basis is part of the state). Convolutions are (out, in · kh · kw), vectors n × 1. For all else see LayerClip.
    Under a GradScaler gradients are multiplied with its scale, and so are singular values: unscale first, or τ means
    something else at every change of the scale, and an adaptive τ is of another scale than the gradient.

    >>> model = torch.nn.Linear(4, 3)
    >>> optimizer, scaler = torch.optim.SGD(model.parameters(), lr=0.1), torch.amp.GradScaler("cpu")
    >>> clip = SpectralClip.for_model(model, 0.5)
    >>> scaler.scale(model(torch.ones(8, 4)).square().sum()).backward()
    >>> scaler.unscale_(optimizer)  # from here on the gradient is the loss's own
    >>> stats = clip(model.named_parameters())
    >>> round(float(torch.linalg.matrix_norm(model.weight.grad, 2)), 4)
    0.5
    >>> _ = scaler.step(optimizer), scaler.update()
    """

    backends = BACKENDS

    def __init__(
        self,
        threshold: float | Threshold,
        backend: str = "auto",
        skip: Sequence[str] = SKIP,
        rank: int | None = None,
        oversample: int = 5,
        iterations: int = 1,
    ) -> None:
        super().__init__(threshold, backend, skip)
        check_setting(rank, oversample, iterations)
        self.rank, self.oversample, self.iterations = rank, oversample, iterations
        self.generator = torch.Generator().manual_seed(0)
        self._bases: dict[str, Tensor] = {}

    @classmethod
    def for_model(
        cls,
        model: nn.Module,
        threshold: float | Threshold,
        backend: str = "auto",
        skip: Sequence[str] = SKIP,
        skip_types: Sequence[str] = SKIP_TYPES,
        rank: int | None = None,
        oversample: int = 5,
        iterations: int = 1,
    ) -> Self:
        return cls(threshold, backend, skipped(model, skip, skip_types), rank, oversample, iterations)

    def reseed(self, seed: int) -> None:
        """Start the draws of the randomized backend from `seed`."""
        self.generator.manual_seed(seed)

    def clip_matrices(self, names: list[str], matrices: list[Tensor], tau: Tensor, lengths: Tensor) -> SpectralReport:
        if self.backend == "randomized":
            return self._clip_randomized(names, matrices, tau)
        # Matrix products alone never read a value, on no device: that path is an accelerator's.
        if self.measure or tau.device.type != "cpu" or self.backend == "newton_schulz":
            return clip_matrices_(matrices, tau, self.backend, self.measure, lengths)
        # A constant threshold does not want σ_max, and where ‖G‖_F ≤ τ nothing is above it.
        active = [place for place, idle in enumerate((lengths <= tau).tolist()) if not idle]
        report = SpectralReport(
            torch.full_like(tau, math.nan),
            *(torch.zeros(len(tau), dtype=kind) for kind in (torch.int64, torch.bool, torch.bool)),
        )
        if active:
            index = torch.tensor(active)
            chosen = [matrices[place] for place in active]
            part = clip_matrices_(chosen, tau[index], self.backend, False, lengths[index])
            report = SpectralReport(*(old.index_copy(0, index, new) for old, new in zip(report, part, strict=True)))
        return report

    def _clip_randomized(self, names: list[str], matrices: list[Tensor], tau: Tensor) -> SpectralReport:
        reports = []
        for name, matrix, level in zip(names, matrices, tau.tolist(), strict=True):
            basis = self._bases.get(name) if self.rank is None else None
            report, basis = randomized_one_(
                matrix, level, self.rank, self.oversample, self.iterations, basis, self.generator
            )
            if basis is not None and self.rank is None:
                self._bases[name] = basis
            reports.append(report)
        return gather(reports, tau.device)

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"bases": {name: basis.clone() for name, basis in self._bases.items()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self._bases = dict(state["bases"])
