"""Adaptive gradient clipping: each unit's gradient against the size of that unit's weights."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from clipbench.clipping.base import Clipper, ClipStats, NamedParameters, check_positive, gradients, norms, pairs, total
from clipbench.clipping.selection import check_patterns, matches

HEAD = ("head.*", "*.head.*", "classifier.weight", "classifier.bias", "fc.weight", "fc.bias")


class AdaptiveGradientClip(Clipper):
    """AGC (Brock et al. 2021, arXiv 2102.06171, equation 3), unit-wise.

        G_i ← G_i · min(1, λ max(‖W_i‖, ε)/‖G_i‖)

    i runs over units: rows of a matrix, output channels of a filter (over all its other axes); a vector's or a scalar's
    entries are units of their own only where it is 0-dim, else it is one unit, as in the authors' code. clipping: λ;
    eps: ε, so that weights that start at zero may move. skip: name patterns left alone, the classifier head by default,
    as the paper advises. A zero gradient has the factor 1; a unit whose norm is not finite is left as it is and not
    counted as clipped. Raises ValueError where clipping or eps is not > 0.

        >>> layer = torch.nn.Linear(2, 1, bias=False)
        >>> _ = torch.nn.init.constant_(layer.weight, 1.0)
        >>> layer(torch.tensor([[3.0, 4.0]])).sum().backward()
        >>> stats = AdaptiveGradientClip(0.5)(layer.named_parameters())
        >>> layer.weight.grad.norm(), layer.weight.detach().norm()
        (tensor(0.7071), tensor(1.4142))
    """

    counts_below_layers = True

    def __init__(self, clipping: float = 0.01, eps: float = 1e-3, skip: Sequence[str] = HEAD) -> None:
        self.clipping = check_positive("clipping", clipping)
        self.eps = check_positive("eps", eps)
        self.skip = check_patterns(skip)

    def __call__(self, named_parameters: NamedParameters) -> ClipStats:
        named = [(name, p) for name, p in pairs(named_parameters, named=bool(self.skip)) if p.grad is not None]
        _, grads = gradients(named)
        norm = total(norms(grads))
        shares, counts = [], []
        for name, parameter in named:
            grad = parameter.grad
            if grad is None or matches(name, self.skip):
                continue
            bound = self.clipping * unit_norms(parameter.detach()).clamp_min(self.eps)
            length = unit_norms(grad)
            clipped = torch.isfinite(length) & (length > bound)
            grad.mul_(torch.where(clipped, bound / length, 1.0).to(grad.dtype))
            shares.append(clipped.to(norm.dtype).sum())
            counts.append(clipped.numel())
        if not counts:
            return ClipStats(norm, torch.zeros_like(norm))
        return ClipStats(norm, torch.stack(shares).sum() / sum(counts))


def unit_norms(tensor: Tensor) -> Tensor:
    """Norm of each unit, shaped to broadcast: (rows, 1, …) from two axes on, else one for the whole tensor."""
    promoted = tensor if tensor.dtype == torch.float64 else tensor.float()
    if tensor.dim() < 2:
        return torch.linalg.vector_norm(promoted)
    return torch.linalg.vector_norm(promoted, dim=tuple(range(1, tensor.dim())), keepdim=True)
