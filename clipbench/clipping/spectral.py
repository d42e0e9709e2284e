"""Spectral clipping: each layer's singular values."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from clipbench.clipping.layers import LayerClip
from clipbench.clipping.selection import SKIP, SKIP_TYPES, check_patterns, parameters_of
from clipbench.clipping.thresholds import Threshold
from clipbench.spectral import (
    Backend,
    SpectralReport,
    check_backend,
    check_setting,
    clip_matrices_,
    gather,
    randomized_one_,
)


class SpectralClip(LayerClip):
    """Spectral clipping (arXiv 2605.11838): G = U diag(s) Vᵀ ← U diag(min(s, τ)) Vᵀ, layer by layer.

    backend: see clipbench.spectral.clip_singular_values; `auto` depends on shape, dtype, device type and on whether
    the threshold adapts, on no value. rank, oversample, iterations: of backend `randomized`; with a rank the paper's
    truncated SVD, cold at every step; without one the adaptive form, warm-started from the layer's last call (its
    basis is part of the state). Convolutions are (out, in · kh · kw), vectors n × 1. For skip see LayerClip.
    """

    def __init__(
        self,
        threshold: float | Threshold,
        backend: Backend = "auto",
        skip: Sequence[str] = SKIP,
        rank: int | None = None,
        oversample: int = 5,
        iterations: int = 1,
    ) -> None:
        super().__init__(threshold, skip)
        check_backend(backend)
        check_setting(rank, oversample, iterations)
        self.backend = backend
        self.rank, self.oversample, self.iterations = rank, oversample, iterations
        self.generator = torch.Generator().manual_seed(0)
        self._bases: dict[str, Tensor] = {}

    @classmethod
    def for_model(
        cls,
        model: nn.Module,
        threshold: float | Threshold,
        backend: Backend = "auto",
        skip: Sequence[str] = SKIP,
        skip_types: Sequence[str] = SKIP_TYPES,
        rank: int | None = None,
        oversample: int = 5,
        iterations: int = 1,
    ) -> SpectralClip:
        """The same for `model`; also skips the parameters of modules of these classes, by name."""
        names = (*check_patterns(skip), *parameters_of(model, skip_types))
        return cls(threshold, backend, names, rank, oversample, iterations)

    def reseed(self, seed: int) -> None:
        """Start the draws of the randomized backend from `seed`."""
        self.generator.manual_seed(seed)

    def clip_matrices(self, names: list[str], matrices: list[Tensor], tau: Tensor, lengths: Tensor) -> SpectralReport:
        if self.backend == "randomized":
            return self._clip_randomized(names, matrices, tau)
        # Matrix products alone never read a value, on no device: that path is an accelerator's.
        if self.threshold.adaptive or tau.device.type != "cpu" or self.backend == "newton_schulz":
            return clip_matrices_(matrices, tau, self.backend, self.threshold.adaptive, lengths)
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
        outcomes = []
        for name, matrix, level in zip(names, matrices, tau.tolist(), strict=True):
            basis = self._bases.get(name) if self.rank is None else None
            outcome, basis = randomized_one_(
                matrix, level, self.rank, self.oversample, self.iterations, basis, self.generator
            )
            if basis is not None and self.rank is None:
                self._bases[name] = basis
            outcomes.append(outcome)
        return gather(outcomes, tau.device)

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"bases": {name: basis.clone() for name, basis in self._bases.items()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self._bases = dict(state["bases"])
