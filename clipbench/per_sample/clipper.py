"""What users call: per-sample clipping in place of `losses.mean().backward()`."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal, NamedTuple, Self

import torch
from torch import Tensor, nn

from clipbench.per_sample.aside import Aside
from clipbench.per_sample.care import readable
from clipbench.per_sample.distributed import Ranks, group_of, stays_local
from clipbench.per_sample.engine import PerSampleGradients, SampleGradients
from clipbench.per_sample.frozen import freeze_batch_statistics
from clipbench.per_sample.thresholds import Remembered, ThresholdRule, check_threshold, clip_weight, evaluate_threshold
from clipbench.per_sample.traces import Trace
from clipbench.per_sample.verify import Verification, trainable

if TYPE_CHECKING:
    from clipbench.per_sample.distributed import GroupChoice

WeightRule = Callable[[Tensor, Tensor], Tensor]
"""A callable (norms, thresholds) → γ, all (n,)."""


class SampleClipStats(NamedTuple):
    """What one call of `PerSampleClipper.backward` saw on this rank; tensors on the model's device, none was read.

    norms: per-sample gradient norms over all parameters together, (n,), in float32 at least; without a GradScaler's
        `scale`.
    thresholds: τ_k, (n,).
    clipped_fraction: share of these n samples whose norm exceeds its threshold, 0-dim.
    dropped: number of these samples whose gradient is not finite, 0-dim.
    """

    norms: Tensor
    thresholds: Tensor
    clipped_fraction: Tensor
    dropped: Tensor


ClipStats = SampleClipStats  # its earlier name, which the clippers' own type has too


class PerSampleClipper:
    """PS-Clip-SGD's estimator (Nobile & Grohs, arXiv 2605.02701): ĝ = (1/n) Σ_k γ_k g_k, γ_k = min(1, τ_k/‖g_k‖₂).

    The norm is over all trainable parameters of `model` together. One line changes in a training loop::

        clipper = PerSampleClipper(model, threshold)
        stats = clipper.backward(losses)      # instead of losses.mean().backward(); losses (n,)

    The first of two samples has a gradient of norm 5, the second of norm 1:

        >>> layer = nn.Linear(2, 1, bias=False)
        >>> losses = layer(torch.tensor([[3.0, 4.0], [0.0, 1.0]]))[:, 0]
        >>> stats = PerSampleClipper(layer, 1.0).backward(losses)
        >>> stats.norms, layer.weight.grad
        (tensor([5., 1.]), tensor([[0.3000, 0.9000]]))

    threshold: a positive float; a tensor with one value per sample; or a callable (k, norms) → τ such as
        `PowerThreshold`, with k = 1 … n the position in the batch.
    weight: another rule than hard clipping, (norms, thresholds) → γ, all (n,).
    nonfinite: what becomes of a sample whose gradient norm is inf or NaN. "drop" (default) gives it weight zero and
        counts it in `stats.dropped`; it still counts in n. "raise" raises FloatingPointError, and so waits for
        the device at every step. Under a GradScaler "drop" leaves the sample in, see `backward`.
    verify: compare every step's norms and weighted sums with one backward pass for each sample, and raise RuntimeError
        with the parameters that differ and by how much, before `.grad` is touched. It costs n backward passes and
        waits for the device: meant for the first steps with a new model. Without it a step relies on what the graph
        shows of every row's sample (see `probe`); parameters for which that is not known take n backward passes
        instead, with a warning.
    batch_norm: what becomes of BatchNorm in training mode, which makes every loss depend on every sample. "refuse"
        (default) raises ValueError in `backward`. "frozen" takes the batch's statistics as constants for the gradients,
        in the layers there are now, until `close()`; these gradients are NOT plain training's, see
        `freeze_batch_statistics`, which does the same for some steps only.
    process_group: the ranks whose samples make up the batch. "auto" (default): those of a model wrapped in
        DistributedDataParallel, else none. Where torch.distributed runs on several ranks and the model is not
        wrapped, it must be given: a group, or None for a process that trains alone.

    Data-parallel training: give the DistributedDataParallel wrapper as `model`, and call `backward` on every rank.
    What it adds to `.grad` is the same on all ranks and equals one process' on the whole batch in the order rank 0,
    1, …, uneven parts included (losses of shape (0,) where a rank has no data). DistributedDataParallel's own
    reduction does not run, nor its communication hooks. Under its `no_sync()` contributions stay on their rank in
    `.grad`; the next `backward` outside sums them. Models of which a rank holds parts (FSDP, DTensor) are refused.

    Nothing is attached to the model (but for batch_norm="frozen"): the clipper reads the autograd graph that the
    losses carry, so plain `loss.backward()`, evaluation and other forwards are untouched. As gradients are not sent
    through the parameters' own autograd nodes, hooks on parameters do not run. Those on other tensors do, several times
    where a layout is proven or measured; parameters that are read through a view, a copy or a node with a hook take the
    slow path. A graph does not show hooks, so one that moves gradients between samples must be there from the first
    step on and always do the same.

    What is guaranteed of norms and sums, and what a step costs, is told in `clipbench.per_sample`.
    """

    def __init__(
        self,
        model: nn.Module,
        threshold: float | Tensor | ThresholdRule,
        weight: WeightRule | None = None,
        nonfinite: Literal["drop", "raise"] = "drop",
        verify: bool = False,
        process_group: GroupChoice = "auto",
        batch_norm: Literal["refuse", "frozen"] = "refuse",
    ) -> None:
        check_threshold(threshold)
        if weight is not None and not callable(weight):
            raise ValueError(f"weight must be a callable (norms, thresholds) -> weights, got {weight!r}")
        if nonfinite not in ("drop", "raise"):
            raise ValueError(f"nonfinite must be 'drop' or 'raise', got {nonfinite!r}")
        if batch_norm not in ("refuse", "frozen"):
            raise ValueError(f"batch_norm must be 'refuse' or 'frozen', got {batch_norm!r}")
        self._frozen = freeze_batch_statistics(model) if batch_norm == "frozen" else None
        self.model = model
        self.threshold = threshold
        self.weight = weight or clip_weight
        self.nonfinite = nonfinite
        self.verify = verify
        self.process_group = process_group
        self._engine = PerSampleGradients(model)
        self._remembered = Remembered()
        self._ranks: Ranks | None = None
        self._closed = False

    @torch.no_grad()
    def backward(
        self, losses: Tensor, offset: int = 0, total: int | None = None, scale: float | Tensor = 1.0
    ) -> SampleClipStats:
        """Add (1/total) Σ_k γ_k g_k to the parameters' `.grad`, for `losses` (n,), one loss per sample.

        offset, total: for gradient accumulation. This part holds samples k = offset + 1 … offset + n of `total`
        (default n); the mean is over `total`, dropped samples included. On several ranks both are this rank's own
        numbers, as is a threshold tensor; k and the mean then go over all ranks (see `Ranks.place`). The graph is
        freed, as by `backward()`.
        scale: the factor s by which a torch.amp.GradScaler multiplied `losses`, a float or a 0-dim tensor::

            stats = clipper.backward(scaler.scale(losses), scale=scaler.get_scale())
            scaler.step(optimizer)            # takes s out of `.grad`, or skips the step where that is not finite
            scaler.update()

        Thresholds meet norms without s; what is added to `.grad` keeps it. A sample that is not finite makes `.grad`
        NaN, also with nonfinite="drop" (and is counted as dropped): the scaler must see it to skip the step and lower
        s. Were it left out, it would be left out at every step, and s never come down.
        Raises ValueError for losses of another shape, without a graph, or that mix samples, and for a model that
        cannot be reduced over ranks.
        """
        self._check(losses)
        if autocasts(losses):  # what is to be cast was cast in the forward
            with torch.autocast(losses.device.type, enabled=False):
                return self.backward(losses, offset, total, scale)
        n = losses.shape[0]
        total = n if total is None else total
        if offset < 0 or offset + n > total:
            raise ValueError(f"offset must be between 0 and total - n = {total - n}, got {offset}")
        check_scale(scale)
        ranks = self._reached()
        if n == 0 and ranks is None:
            return self._empty(losses)
        before, count = (None, total) if ranks is None else ranks.place(n, offset, total, losses.device)
        gradients = self._engine.collect(losses, retain_graph=self.verify) if n else SampleGradients(losses, Trace())
        scaled = gradients.norms()
        norms = scaled if unscaled(scale) else scaled / scale
        thresholds = evaluate_threshold(self.threshold, self._remembered, norms, offset, total, before)
        gamma = self.weight(norms, thresholds)
        if not isinstance(gamma, Tensor) or gamma.shape != norms.shape:
            raise ValueError(f"weight must return a tensor of shape ({n},), got {gamma!r}")
        keep = self._finite(norms, ranks, gradients.finite and unscaled(scale))
        dropped = norms.new_zeros((), dtype=torch.int64) if keep is None else n - keep.sum()
        if keep is not None:
            gamma = torch.where(keep, gamma, 0.0 if unscaled(scale) else torch.nan)
        self._add(gradients, gamma / count, keep if unscaled(scale) else None, scaled, ranks)
        return SampleClipStats(norms, thresholds, (norms > thresholds).mean(dtype=norms.dtype), dropped)

    def _add(
        self, gradients: SampleGradients, weights: Tensor, keep: Tensor | None, norms: Tensor, ranks: Ranks | None
    ) -> None:
        """Add Σ_k w_k g_k to `.grad`, looked at and summed over the ranks on the way where that is asked for."""
        if ranks is None and not self.verify:
            gradients.accumulate(weights, keep)
            return
        params = list(trainable(self.model).values())
        local = stays_local(self.model)
        if ranks is not None and local:
            ranks.share(params)
        truth = Verification(self.model, gradients.losses, norms, weights) if self.verify and len(norms) else None
        aside = Aside(params)
        gradients.accumulate(weights, keep)
        if truth is not None:
            try:
                truth.check()
            except RuntimeError:
                aside.restore(params)
                raise
        if ranks is not None and not local:
            aside.merge(ranks.waits)
            ranks.reduce(params)
            ranks.settle()
        aside.merge()
        if ranks is not None and local:
            ranks.leave(params)

    def _reached(self) -> Ranks | None:
        """The ranks that take part in this step; None where this process trains alone."""
        group = group_of(self.model, self.process_group)
        if group is None:
            return None
        if self._ranks is None or self._ranks.group is not group:
            self._ranks = Ranks(group)
        return self._ranks

    def _finite(self, norms: Tensor, ranks: Ranks | None, known: bool) -> Tensor | None:
        """Which samples are kept, (n,); None where all are, as is `known` or found now.

        That is asked only where asking is free, on a CPU. Elsewhere samples are always taken out by a mask, which
        costs one pass over δ and a but does not wait for the device.
        """
        if known and self.nonfinite == "drop":
            return None
        keep = norms < torch.inf  # false for NaN too
        if self.nonfinite == "raise":
            lost = (~keep).sum() if ranks is None else ranks.add_up((~keep).sum())
            if count := int(lost):  # on all ranks together, or the others would wait for this one
                raise FloatingPointError(f"{count} of {norms.shape[0]} per-sample gradients are not finite")
            return None
        if norms.device.type == "cpu" and readable(norms) and math.isfinite(norms.sum().item()):
            return None
        return keep

    @torch.no_grad()
    def norms(self, losses: Tensor) -> Tensor:
        """Per-sample gradient norms (n,) alone: `.grad` stays as it is, and the graph can be used again."""
        self._check(losses)
        if autocasts(losses):
            with torch.autocast(losses.device.type, enabled=False):
                return self.norms(losses)
        return self._engine.collect(losses, retain_graph=True).norms() if losses.shape[0] else losses.new_zeros(0)

    def close(self) -> None:
        """End the clipper's use; BatchNorm layers that it froze are as they were before."""
        self._closed = True
        if self._frozen is not None:
            self._frozen.remove()

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
        if losses.is_complex():
            raise ValueError(f"losses must be real numbers, got {losses.dtype}")
        if losses.grad_fn is None:
            raise ValueError("losses must have been computed with gradients enabled, got losses without a graph")

    def _empty(self, losses: Tensor) -> SampleClipStats:
        none = losses.new_zeros(0)
        return SampleClipStats(none, none, losses.new_zeros(()), losses.new_zeros((), dtype=torch.int64))


def autocasts(losses: Tensor) -> bool:
    """Whether products with tensors like these would be rounded to a half precision here."""
    kind = losses.device.type
    return torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)


def unscaled(scale: float | Tensor) -> bool:
    """Whether no GradScaler is at work: a disabled one has the scale 1.0."""
    return not isinstance(scale, Tensor) and scale == 1.0


def check_scale(scale: float | Tensor) -> None:
    """Raise ValueError unless `scale` is a positive finite number or a tensor without axes (which is not read)."""
    if isinstance(scale, Tensor):
        if scale.dim() != 0:
            raise ValueError(f"scale must be a number or a tensor of shape (), got shape {tuple(scale.shape)}")
    elif not 0.0 < scale < math.inf:
        raise ValueError(f"scale must be > 0 and finite, got {scale}")
