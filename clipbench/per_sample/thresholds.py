"""Thresholds: how far a sample's gradient may reach before it is scaled down."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

ThresholdRule = Callable[[Tensor, Tensor], Tensor]
"""A callable (k, norms) -> thresholds: positions k = 1, 2, … and gradient norms, both (n,), to thresholds (n,)."""


class PowerThreshold:
    """PS-Clip-SGD's threshold (Nobile & Grohs, arXiv 2605.02701): τ_k = α k^{1/β}.

    k = 1, 2, … is the sample's position in the batch, counted over all micro-batches of an optimizer step.
    The theory sets α to the noise scale and β to the order p of the noise's bounded moment, 1 < p ≤ 2;
    β = inf gives every sample the threshold α. Raises ValueError where α or β is not positive.
    """

    def __init__(self, alpha: float, beta: float) -> None:
        if not alpha > 0:
            raise ValueError(f"alpha must be > 0, got {alpha}")
        if not beta > 0:
            raise ValueError(f"beta must be > 0, got {beta}")
        self.alpha = alpha
        self.beta = beta

    def __call__(self, k: Tensor, norms: Tensor) -> Tensor:
        """Thresholds (n,) for positions `k` (n,); the norms (n,) play no part."""
        return self.alpha * k ** (1.0 / self.beta)

    def __repr__(self) -> str:
        return f"PowerThreshold(alpha={self.alpha}, beta={self.beta})"


def check_threshold(threshold: float | Tensor | ThresholdRule) -> None:
    """Raise ValueError unless `threshold` is a positive number, a 1-d tensor or a callable."""
    if isinstance(threshold, Tensor):
        if threshold.dim() != 1:
            raise ValueError(f"threshold must be a tensor of one axis, got shape {tuple(threshold.shape)}")
    elif isinstance(threshold, (int, float)) and not isinstance(threshold, bool):
        if not threshold > 0:
            raise ValueError(f"threshold must be > 0, got {threshold}")
    elif not callable(threshold):
        raise ValueError(f"threshold must be a number, a tensor or a callable, got {threshold!r}")


class Remembered:
    """Tensors that are the same at every step: the last of each kind, of which copies are given.

    Rules and users may write into what they are given, and not all writes can be told afterwards (NumPy's).
    """

    def __init__(self) -> None:
        self._last: dict[str, tuple[tuple[object, ...], Tensor]] = {}

    def positions(self, offset: int, norms: Tensor) -> Tensor:
        """k = offset + 1 … offset + n, (n,), for `norms` (n,), of its type and on its device."""
        return self._get("k", (offset,), norms, partial(_positions, offset, norms))

    def powers(self, rule: PowerThreshold, offset: int, norms: Tensor) -> Tensor:
        """The thresholds of a `rule` for these positions, (n,)."""
        key = (rule.alpha, rule.beta, offset)
        return self._get("powers", key, norms, lambda: rule(_positions(offset, norms), norms))

    def _get(self, kind: str, value: tuple[float, ...], norms: Tensor, make: Callable[[], Tensor]) -> Tensor:
        key = (value, norms.shape[0], norms.dtype, norms.device, type(norms))
        last = self._last.get(kind)
        if last is not None and last[0] == key:
            return last[1].clone()
        made = make()
        if type(made) is Tensor:  # a fake one belongs to its mode
            self._last[kind] = (key, made.clone())
        return made


def _positions(offset: int, norms: Tensor) -> Tensor:
    return torch.arange(offset + 1, offset + norms.shape[0] + 1, device=norms.device, dtype=norms.dtype)


def evaluate_threshold(
    threshold: float | Tensor | ThresholdRule,
    remembered: Remembered,
    norms: Tensor,
    offset: int,
    total: int,
    before: Tensor | None = None,
) -> Tensor:
    """Thresholds (n,) for the samples k = offset + 1 … offset + n of a step of `total` samples.

    before: samples before these where other ranks' are counted too, 0-dim; a callable's k then starts there.
    """
    n = norms.shape[0]
    if isinstance(threshold, Tensor):
        if threshold.shape[0] != total:
            raise ValueError(f"threshold must hold one value per sample ({total}), got {threshold.shape[0]}")
        return threshold.detach()[offset : offset + n].to(norms, copy=True)
    if not callable(threshold):
        return torch.full_like(norms, float(threshold))
    if n == 0:
        return norms
    if before is None and type(threshold) is PowerThreshold:
        return remembered.powers(threshold, offset, norms)
    k = remembered.positions(offset, norms) if before is None else remembered.positions(0, norms) + before
    tau = threshold(k, norms)
    if not isinstance(tau, Tensor) or tau.shape != norms.shape:
        raise ValueError(f"threshold must return a tensor of shape ({n},), got {tau!r}")
    return tau


def clip_weight(norms: Tensor, thresholds: Tensor) -> Tensor:
    """γ = min(1, τ/‖g‖), shape (n,): the weight of hard clipping, for τ > 0. A zero gradient has weight one."""
    return torch.div(thresholds, norms).clamp_(max=1.0)
