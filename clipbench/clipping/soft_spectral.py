"""Soft spectral clipping: every singular value is damped, none is cut."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from clipbench.clipping.layers import LayerClip
from clipbench.clipping.selection import SKIP, SKIP_TYPES, check_patterns, parameters_of
from clipbench.clipping.thresholds import Threshold
from clipbench.spectral import SpectralReport, soft_matrices_


class SoftSpectralClip(LayerClip):
    """Soft spectral clipping (SPECTRA, arXiv 2603.14315): σ ← σ / √(1 + σ²/c²), c the threshold.

    Smooth, below c everywhere, and σ itself where σ ≪ c. count_above counts singular values above c. Before an
    adaptive threshold has a value, c is infinite and the gradient stays as it is.
    """

    def __init__(
        self,
        threshold: float | Threshold,
        backend: Literal["auto", "exact", "newton_schulz"] = "auto",
        skip: Sequence[str] = SKIP,
    ) -> None:
        super().__init__(threshold, skip)
        if backend not in ("auto", "exact", "newton_schulz"):
            raise ValueError(f"backend must be auto, exact or newton_schulz, got {backend}")
        self.backend: Literal["auto", "exact", "newton_schulz"] = backend

    @classmethod
    def for_model(
        cls,
        model: nn.Module,
        threshold: float | Threshold,
        backend: Literal["auto", "exact", "newton_schulz"] = "auto",
        skip: Sequence[str] = SKIP,
        skip_types: Sequence[str] = SKIP_TYPES,
    ) -> SoftSpectralClip:
        """The same for `model`; also skips the parameters of modules of these classes, by name."""
        return cls(threshold, backend, (*check_patterns(skip), *parameters_of(model, skip_types)))

    def clip_matrices(self, names: list[str], matrices: list[Tensor], tau: Tensor, lengths: Tensor) -> SpectralReport:
        return soft_matrices_(matrices, tau, self.backend, self.threshold.adaptive)

    def vector_factor(self, norm: Tensor, tau: Tensor) -> Tensor:
        damped = torch.rsqrt(1 + (norm / tau).square())
        return torch.where(torch.isfinite(norm) & torch.isfinite(tau), damped, 1.0)
