"""What the tests of the engine share: a loss, the flat gradient, and the comparison with the slow twin."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from clipbench.per_sample import PerSampleClipper
from tests.reference.per_sample import Loss, clipped_mean, sample_gradients


def square_loss(model: nn.Module, inputs: Tensor) -> Tensor:
    """A loss of each sample, (n,), whose gradient vanishes nowhere in particular."""
    out = model(inputs).flatten(1)
    return 0.5 * out.square().sum(1) + out.sum(1)


def flat_gradient(model: nn.Module) -> Tensor:
    """All `.grad` as one float64 vector on the CPU, zeros where there is none."""
    return torch.cat(
        [
            (torch.zeros_like(p) if p.grad is None else p.grad).double().flatten().cpu()
            for p in model.parameters()
            if p.requires_grad
        ]
    )


def errors(model: nn.Module, inputs: Tensor, loss: Loss = square_loss, steps: int = 1) -> tuple[float, float]:
    """Relative errors of the norms and of the clipped gradient (over the largest entry of the whole gradient)."""
    rows = sample_gradients(model, loss, inputs)
    norms = rows.norm(dim=1)
    tau = norms.median().item() or 1.0
    wanted = clipped_mean(rows, torch.full((len(rows),), tau, dtype=torch.float64))
    clipper = PerSampleClipper(model, tau)
    for _ in range(steps):
        model.zero_grad()
        stats = clipper.backward(loss(model, inputs))
    off = (stats.norms.double().cpu() - norms).abs().max() / norms.max().clamp(min=1e-12)
    # Samples may cancel in their mean, down to nothing; their own size is the floor.
    scale = max(wanted.abs().max().item(), 1e-3 * rows.abs().mean(0).clamp(max=tau).max().item(), 1e-12)
    return off.item(), (flat_gradient(model) - wanted).abs().max().item() / scale
