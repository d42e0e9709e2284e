"""Thresholds: how far a sample's gradient may reach before it is scaled down."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

ThresholdRule = Callable[[Tensor, Tensor], Tensor]
"""A callable (k, norms) -> thresholds: positions k = 1, 2, … and gradient norms, both (n,), to thresholds (n,)."""


class Kept:
    """A tensor that is handed out again, unless somebody has written into it."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor
        self._version = tensor._version

    @property
    def untouched(self) -> bool:
        """Whether it is still as it was made."""
        return self.tensor._version == self._version


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
        self._last: tuple[Tensor, tuple[float, float, int], Kept] | None = None

    def __call__(self, k: Tensor, norms: Tensor) -> Tensor:
        """Thresholds (n,) for positions `k` (n,); the norms (n,) play no part. Kept for as long as `k` is the same."""
        last, made_of = self._last, (self.alpha, self.beta, k._version)
        if last is None or last[0] is not k or last[1] != made_of or not last[2].untouched:
            last = self._last = (k, made_of, Kept(self.alpha * k ** (1.0 / self.beta)))
        return last[2].tensor

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
    """Tensors that are the same at every step: the last of each kind, given again as long as nothing changes."""

    def __init__(self) -> None:
        self._last: dict[str, tuple[tuple[object, ...], Kept]] = {}

    def positions(self, offset: int, norms: Tensor) -> Tensor:
        """k = offset + 1 … offset + n, (n,), for `norms` (n,), of its type and on its device."""
        end = offset + norms.shape[0] + 1
        make = partial(torch.arange, offset + 1, end, device=norms.device, dtype=norms.dtype)
        return self._get("k", offset, norms, make)

    def constant(self, value: float, norms: Tensor) -> Tensor:
        """`value`, (n,), for `norms` (n,), of its type and on its device."""
        return self._get("constant", value, norms, partial(torch.full_like, norms, value))

    def _get(self, kind: str, value: float, norms: Tensor, make: Callable[[], Tensor]) -> Tensor:
        key = (value, norms.shape[0], norms.dtype, norms.device, type(norms))
        last = self._last.get(kind)
        if last is not None and last[0] == key and last[1].untouched:
            return last[1].tensor
        made = make()
        if type(made) is Tensor:  # a fake one belongs to its mode
            self._last[kind] = (key, Kept(made))
        return made


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
        return remembered.constant(float(threshold), norms)
    if n == 0:
        return norms
    k = remembered.positions(offset, norms) if before is None else remembered.positions(0, norms) + before
    tau = threshold(k, norms)
    if not isinstance(tau, Tensor) or tau.shape != norms.shape:
        raise ValueError(f"threshold must return a tensor of shape ({n},), got {tau!r}")
    return tau


def clip_weight(norms: Tensor, thresholds: Tensor) -> Tensor:
    """γ = min(1, τ/‖g‖), shape (n,): the weight of hard clipping, for τ > 0. A zero gradient has weight one."""
    return torch.div(thresholds, norms).clamp_(max=1.0)
