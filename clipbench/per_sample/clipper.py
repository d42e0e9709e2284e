"""What users call: per-sample clipping in place of `losses.mean().backward()`."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, NamedTuple, Self

import torch
from torch import Tensor, nn

from clipbench.per_sample.engine import PerSampleGradients
from clipbench.per_sample.probe import readable
from clipbench.per_sample.thresholds import Remembered, ThresholdRule, check_threshold, clip_weight, evaluate_threshold

WeightRule = Callable[[Tensor, Tensor], Tensor]
"""A callable (norms, thresholds) → γ, all (n,)."""


class ClipStats(NamedTuple):
    """What one call of `PerSampleClipper.backward` saw; tensors on the model's device, nothing was read from it.

    norms: per-sample gradient norms over all parameters together, (n,), in float32 at least.
    thresholds: τ_k, (n,).
    clipped_fraction: share of these n samples whose norm exceeds its threshold, 0-dim.
    dropped: number of these samples whose gradient is not finite, 0-dim.
    """

    norms: Tensor
    thresholds: Tensor
    clipped_fraction: Tensor
    dropped: Tensor


class PerSampleClipper:
    """PS-Clip-SGD's estimator (Nobile & Grohs, arXiv 2605.02701): ĝ = (1/n) Σ_k γ_k g_k, γ_k = min(1, τ_k/‖g_k‖₂).

    The norm is over all trainable parameters of `model` together. One line changes in a training loop::

        clipper = PerSampleClipper(model, threshold)
        stats = clipper.backward(losses)      # instead of losses.mean().backward(); losses (n,)

    threshold: a positive float; a tensor with one value per sample; or a callable (k, norms) → τ such as
        `PowerThreshold`, with k = 1 … n the position in the batch.
    weight: another rule than hard clipping, (norms, thresholds) → γ, all (n,).
    nonfinite: what becomes of a sample whose gradient norm is inf or NaN. "drop" (default) gives it weight zero and
        counts it in `stats.dropped`; it still counts in n. "raise" raises FloatingPointError, and so waits for
        the device at every step.

    Nothing is attached to the model: the clipper reads the autograd graph that the losses carry, so plain
    `loss.backward()`, evaluation and other forwards are untouched. As gradients are not sent through the
    parameters' own autograd nodes, hooks on parameters do not run.
    """

    def __init__(
        self,
        model: nn.Module,
        threshold: float | Tensor | ThresholdRule,
        weight: WeightRule | None = None,
        nonfinite: Literal["drop", "raise"] = "drop",
    ) -> None:
        check_threshold(threshold)
        if weight is not None and not callable(weight):
            raise ValueError(f"weight must be a callable (norms, thresholds) -> weights, got {weight!r}")
        if nonfinite not in ("drop", "raise"):
            raise ValueError(f"nonfinite must be 'drop' or 'raise', got {nonfinite!r}")
        self.threshold = threshold
        self.weight = weight or clip_weight
        self.nonfinite = nonfinite
        self._engine = PerSampleGradients(model)
        self._remembered = Remembered()
        self._closed = False

    @torch.no_grad()
    def backward(self, losses: Tensor, offset: int = 0, total: int | None = None) -> ClipStats:
        """Add (1/total) Σ_k γ_k g_k to the parameters' `.grad`, for `losses` (n,), one loss per sample.

        offset, total: for gradient accumulation. This part holds samples k = offset + 1 … offset + n of `total`
        (default n); the mean is over `total`, dropped samples included. The graph is freed, as by `backward()`.
        Raises ValueError for losses of another shape, without a graph, or that mix samples.
        """
        self._check(losses)
        n = losses.shape[0]
        total = n if total is None else total
        if offset < 0 or offset + n > total:
            raise ValueError(f"offset must be between 0 and total - n = {total - n}, got {offset}")
        if n == 0:
            return self._empty(losses)
        gradients = self._engine.collect(losses)
        norms = gradients.norms()
        thresholds = evaluate_threshold(self.threshold, self._remembered, norms, offset, total)
        gamma = self.weight(norms, thresholds)
        keep = self._finite(norms)
        dropped = norms.new_zeros((), dtype=torch.int64) if keep is None else n - keep.sum()
        if keep is not None:
            gamma = torch.where(keep, gamma, 0.0)
        gradients.accumulate(gamma / total, keep)
        return ClipStats(norms, thresholds, (norms > thresholds).mean(dtype=norms.dtype), dropped)

    def _finite(self, norms: Tensor) -> Tensor | None:
        """Which samples are kept, (n,); None where all are known to be.

        That is asked only where asking is free, on a CPU. Elsewhere samples are always taken out by a mask, which
        costs one pass over δ and a but does not wait for the device.
        """
        if self.nonfinite == "raise" or (norms.device.type == "cpu" and readable(norms)):
            if math.isfinite(norms.sum().item()):
                return None
            if self.nonfinite == "raise":
                count = int((~torch.isfinite(norms)).sum())
                raise FloatingPointError(f"{count} of {norms.shape[0]} per-sample gradients are not finite")
        return norms < torch.inf  # false for NaN too

    @torch.no_grad()
    def norms(self, losses: Tensor) -> Tensor:
        """Per-sample gradient norms (n,) alone: `.grad` stays as it is, and the graph can be used again."""
        self._check(losses)
        return self._engine.collect(losses, retain_graph=True).norms() if losses.shape[0] else losses.new_zeros(0)

    def close(self) -> None:
        """End the clipper's use. Nothing was attached to the model, so there is nothing to take off it."""
        self._closed = True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _check(self, losses: Tensor) -> None:
        if self._closed:
            raise RuntimeError("this PerSampleClipper is closed")
        if losses.dim() != 1:
            raise ValueError(
                f"losses must have shape (n,), one loss per sample, got {tuple(losses.shape)} (reduction='none'?)"
            )
        if losses.grad_fn is None:
            raise ValueError("losses must have been computed with gradients enabled, got losses without a graph")

    def _empty(self, losses: Tensor) -> ClipStats:
        none = losses.new_zeros(0)
        return ClipStats(none, none, losses.new_zeros(()), losses.new_zeros((), dtype=torch.int64))
