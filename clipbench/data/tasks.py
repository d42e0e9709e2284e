"""Tasks: per-sample training losses and per-sample metrics for classes, real values and text.

All cross-entropies are in nats. Half-precision outputs (autocast) are promoted to float32 before the loss.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from clipbench.config.checks import fraction
from clipbench.data.base import Batch


def _promoted(outputs: Tensor) -> Tensor:
    return outputs.float() if outputs.dtype in (torch.bfloat16, torch.float16) else outputs


def _with_noise(losses: Tensor, outputs: Tensor, batch: Batch) -> Tensor:
    """Add ⟨e_k, output_k⟩ to the loss of sample k, which adds e_k to the gradient at its output."""
    if batch.output_noise is None:
        return losses
    return losses + (batch.output_noise * outputs).flatten(1).sum(1)


class Classification:
    """Cross-entropy of one class per sample. Outputs (n, classes), targets (n,).

    Label smoothing s trains towards (1 − s)·onehot + s/classes (Szegedy et al. 2016, arXiv 1512.00567,
    section 7). Raises ValueError where label_smoothing is outside [0, 1).
    """

    def __init__(self, label_smoothing: float = 0.0) -> None:
        fraction("label_smoothing", label_smoothing)
        self.label_smoothing = label_smoothing

    def losses(self, outputs: Tensor, batch: Batch) -> Tensor:
        outputs = _promoted(outputs)
        losses = F.cross_entropy(outputs, batch.targets, reduction="none", label_smoothing=self.label_smoothing)
        return _with_noise(losses, outputs, batch)

    def metrics(self, outputs: Tensor, batch: Batch) -> dict[str, Tensor]:
        outputs = _promoted(outputs)
        loss = F.cross_entropy(outputs, batch.targets, reduction="none")
        return {"loss": loss, "accuracy": (outputs.argmax(1) == batch.targets).to(loss.dtype)}


class Regression:
    """Squared error, the mean over a sample's outputs (no factor 1/2). Outputs and targets (n, outputs)."""

    def losses(self, outputs: Tensor, batch: Batch) -> Tensor:
        outputs = _promoted(outputs)
        errors = F.mse_loss(outputs, batch.targets, reduction="none")
        losses = errors.squeeze(1) if errors.shape[1] == 1 else errors.mean(1)  # a mean of one costs a kernel
        return _with_noise(losses, outputs, batch)

    def metrics(self, outputs: Tensor, batch: Batch) -> dict[str, Tensor]:
        return {"loss": (_promoted(outputs) - batch.targets).square().mean(1)}


class NextToken:
    """Cross-entropy of the next token; a sample is a sequence, its loss the mean over its tokens.

    Outputs (n, context, vocabulary), targets (n, context). Raises ValueError where label_smoothing is outside
    [0, 1).
    """

    def __init__(self, label_smoothing: float = 0.0) -> None:
        fraction("label_smoothing", label_smoothing)
        self.label_smoothing = label_smoothing

    def losses(self, outputs: Tensor, batch: Batch) -> Tensor:
        outputs = _promoted(outputs)
        return _with_noise(self._mean_over_tokens(outputs, batch.targets, self.label_smoothing), outputs, batch)

    def metrics(self, outputs: Tensor, batch: Batch) -> dict[str, Tensor]:
        outputs = _promoted(outputs)
        loss = self._mean_over_tokens(outputs, batch.targets, 0.0)
        return {"loss": loss, "accuracy": (outputs.argmax(2) == batch.targets).to(loss.dtype).mean(1)}

    @staticmethod
    def _mean_over_tokens(outputs: Tensor, targets: Tensor, label_smoothing: float) -> Tensor:
        losses = F.cross_entropy(
            outputs.flatten(0, 1), targets.flatten(), reduction="none", label_smoothing=label_smoothing
        )
        return losses.view_as(targets).mean(1)
