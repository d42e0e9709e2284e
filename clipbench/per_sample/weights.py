"""Weights: by how much a sample's gradient counts, given its norm and its threshold. Each rule is a callable
(norms, thresholds) → γ, all (n,), for `PerSampleClipper(…, weight=…)`; hard clipping, min(1, τ/‖g‖), is the default.
"""

from __future__ import annotations

import torch
from torch import Tensor


class AutomaticWeight:
    """Automatic clipping (AUTO-S; Bu et al. 2023, arXiv 2206.07136): γ_k = C/(‖g_k‖ + r), with C the threshold.

    Every sample is scaled, small ones up; a zero gradient stays zero. stabilizer: r > 0, 0.01 in the paper. Raises
    ValueError where it is not > 0.

        >>> AutomaticWeight(0.01)(torch.tensor([0.99, 0.0]), torch.ones(2))
        tensor([  1., 100.])
    """

    acts_below_threshold = True

    def __init__(self, stabilizer: float = 0.01) -> None:
        if not stabilizer > 0:
            raise ValueError(f"stabilizer must be > 0, got {stabilizer}")
        self.stabilizer = float(stabilizer)

    def __call__(self, norms: Tensor, thresholds: Tensor) -> Tensor:
        return thresholds / (norms + self.stabilizer)


class NormalizedWeight:
    """Per-sample normalisation (Yang et al. 2022, arXiv 2206.13033, its r → 0): γ_k = C/‖g_k‖, C the threshold.

    Every sample's gradient gets the norm C; a zero gradient has weight 0.

        >>> NormalizedWeight()(torch.tensor([2.0, 0.5, 0.0]), torch.ones(3))
        tensor([0.5000, 2.0000, 0.0000])
    """

    acts_below_threshold = True

    def __call__(self, norms: Tensor, thresholds: Tensor) -> Tensor:
        return torch.where(norms > 0, thresholds / norms, 0.0)


class AdaptiveWeight:
    """Per-sample adaptive clipping (PSAC; Xia et al. 2023, arXiv 2212.00328): γ_k = C/(‖g_k‖ + r/(‖g_k‖ + r)).

    C is the threshold. Small gradients are not scaled up without bound as by normalisation: for ‖g‖ → 0 the weight is
    C. offset: r > 0. Raises ValueError where it is not > 0.

        >>> AdaptiveWeight(0.1)(torch.tensor([0.0, 0.9]), torch.ones(2))
        tensor([1., 1.])
    """

    acts_below_threshold = True

    def __init__(self, offset: float = 0.1) -> None:
        if not offset > 0:
            raise ValueError(f"offset must be > 0, got {offset}")
        self.offset = float(offset)

    def __call__(self, norms: Tensor, thresholds: Tensor) -> Tensor:
        return thresholds / (norms + self.offset / (norms + self.offset))


class SmoothWeight:
    """Smoothed clipping of every sample: γ_k = τ/(‖g_k‖ + τ), so ‖γ g‖ < τ without a kink at ‖g‖ = τ.

    Used with a growing batch by, among others, arXiv 2310.16920. An infinite threshold gives weight one.

        >>> SmoothWeight()(torch.tensor([1.0, 3.0]), torch.tensor([1.0, torch.inf]))
        tensor([0.5000, 1.0000])
    """

    acts_below_threshold = True

    def __call__(self, norms: Tensor, thresholds: Tensor) -> Tensor:
        return 1.0 / (norms / thresholds + 1.0)
