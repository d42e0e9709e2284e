"""Soft spectral clipping: singular values damped instead of cut."""

from __future__ import annotations

import torch
from torch import Tensor

from clipbench.clipping.layers import LayerClip
from clipbench.spectral import SpectralReport, soft_matrices_


class SoftSpectralClip(LayerClip):
    """Soft spectral clipping (SPECTRA, arXiv 2603.14315): σ ← σ / √(1 + σ²/c²), c the threshold.

    Smooth, below c everywhere, and σ itself where σ ≪ c. count_above counts singular values above c. Before an
    adaptive threshold has a value, c is infinite and the gradient stays as it is. backend: `exact`, `newton_schulz` or
    `auto`. A parameter of one dimension whose norm is ≤ c is left alone, as in the paper's public code, so that its
    norm falls from c to c/√2 where it passes c; a matrix with one row or column is damped as any other. For all else
    see LayerClip.

    >>> layer = torch.nn.Linear(2, 2, bias=False)
    >>> layer.weight.grad = torch.diag(torch.tensor([1.0, 1e6]))
    >>> stats = SoftSpectralClip(1.0)(layer.named_parameters())
    >>> [round(float(value), 4) for value in layer.weight.grad.diagonal()]
    [0.7071, 1.0]
    """

    acts_below_threshold = True

    backends = ("auto", "exact", "newton_schulz")

    def clip_matrices(self, names: list[str], matrices: list[Tensor], tau: Tensor, lengths: Tensor) -> SpectralReport:
        return soft_matrices_(matrices, tau, self.backend, self.measure)

    def vector_factor(self, norm: Tensor, tau: Tensor, flat: bool) -> Tensor:
        tau = tau.double().clamp_min(0)
        damped = 1 / torch.hypot(torch.ones_like(norm), norm / tau)
        left = ~torch.isfinite(norm) | (norm == 0) | ((norm <= tau) if flat else torch.isinf(tau))
        return torch.where(left, 1.0, damped)
