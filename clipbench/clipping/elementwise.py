"""SPAM's and Stable-SPAM's gradient rules: entries against their own past size, then the norm against its own."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from clipbench.clipping.base import Clipper, ClipStats, NamedParameters, check_positive, gradients, norms, scale_, total
from clipbench.clipping.rows import Column, NamedRows
from clipbench.config.checks import at_least, fraction


class SpikeClip(Clipper):
    """SPAM's spike-aware clipping (Huang et al. 2025, arXiv 2501.06842): where g_i² > θ v_i, g_i → sign(g_i) √(θ v_i).

    v is the second moment that Adam keeps; here it is the rule's own average of the clipped squares, v ← βv + (1 − β)
    g², so that the rule stands before any optimizer. The first `warmup` steps only fill it, and where v_i is 0
    nothing is clipped. factor: θ; coefficient: β, that of Adam. The paper's momentum reset is the optimizer's part.
    Raises ValueError where an option is out of range.
    """

    counts_below_layers = True

    def __init__(self, factor: float = 5000.0, coefficient: float = 0.999, warmup: int = 20) -> None:
        self.factor = check_positive("factor", factor)
        at_least("warmup", warmup, 0)
        self.warmup = int(warmup)
        self.calls = 0
        fraction("coefficient", coefficient)
        self.coefficient = float(coefficient)
        self._squares: dict[str, Tensor] = {}

    def __call__(self, named_parameters: NamedParameters) -> ClipStats:
        names, grads = gradients(named_parameters)
        norm = total(norms(grads))
        self.calls += 1
        counts, entries = [], 0
        for name, grad in zip(names, grads, strict=True):
            dtype = torch.float64 if grad.dtype == torch.float64 else torch.float32
            square = self._squares.get(name)
            square = torch.zeros_like(grad, dtype=dtype) if square is None else square.to(grad.device)
            bound = (self.factor * square).sqrt()
            clipped = (square > 0) & (grad.abs() > bound) & torch.isfinite(grad) & (self.calls >= self.warmup)
            grad.copy_(torch.where(clipped, grad.sign() * bound, grad))
            seen = torch.where(torch.isfinite(grad), grad.to(dtype).square(), square)
            self._squares[name] = torch.lerp(seen, square, self.coefficient)
            counts.append(clipped.sum())
            entries += clipped.numel()
        if not entries:
            return ClipStats(norm, torch.zeros_like(norm))
        return ClipStats(norm, torch.stack(counts).sum().to(norm.dtype) / entries)

    def state_dict(self) -> dict[str, Any]:
        return {"calls": self.calls, "squares": {name: tensor.clone() for name, tensor in self._squares.items()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.calls = state["calls"]
        self._squares = {name: tensor.clone() for name, tensor in state["squares"].items()}


class StableSpikeClip(Clipper):
    """Stable-SPAM's two gradient rules (Huang et al. 2025, arXiv 2502.17055): AdaClip, then AdaGN, per parameter.

        m ← θm + (1 − θ) max_i|g_i|,  m̂ = m/(1 − θᵗ);      where |g_i| > m̂:  g_i → g_i m̂/max_i|g_i|
        μ ← γ₁μ + (1 − γ₁)‖g‖,  ν ← γ₂ν + (1 − γ₂)‖g‖²;     g → g/‖g‖ · μ̂/(√ν̂ + ε)

    with both averages bias-corrected. entry: θ; first, second: γ₁, γ₂. The second rule changes the scale of every
    gradient (its norm is about 1 afterwards), so rates for it are not those of other rules; `clipped_fraction` is the
    share of entries that the first one clipped. The momentum reset is the optimizer's part and is left out. A gradient
    that is not finite is left as it is and not taken in. Raises ValueError where an option is out of range.
    """

    acts_below_threshold = True
    counts_below_layers = True

    def __init__(self, entry: float = 0.999, first: float = 0.7, second: float = 0.9, eps: float = 1e-8) -> None:
        for name, value in (("entry", entry), ("first", first), ("second", second)):
            fraction(name, value)
        self.entry, self.first, self.second = float(entry), float(first), float(second)
        self.eps = check_positive("eps", eps)
        columns = {name: Column(torch.float64, 0.0) for name in ("largest", "norm", "square")}
        self._rows = NamedRows(count=Column(torch.int64, 0), **columns)

    def __call__(self, named_parameters: NamedParameters) -> ClipStats:
        names, grads = gradients(named_parameters)
        norm = total(norms(grads))
        if not grads:
            return ClipStats(norm, torch.zeros_like(norm))
        rows = self._rows.select(names, norm.device)
        largest = torch.stack([grad.abs().amax() for grad in grads]).double()
        finite = torch.isfinite(norms(grads))
        count = rows["count"] + finite
        average = torch.where(finite, torch.lerp(largest, rows["largest"], self.entry), rows["largest"])
        bound = average / (1 - torch.pow(self.entry, count.double())).clamp_min(torch.finfo(torch.float64).tiny)
        shares = self._clip_entries(grads, largest, bound, finite)
        lengths = norms(grads)
        mean = torch.where(finite, torch.lerp(lengths, rows["norm"], self.first), rows["norm"])
        square = torch.where(finite, torch.lerp(lengths.square(), rows["square"], self.second), rows["square"])
        corrected = [1 - torch.pow(c, count.double().clamp_min(1)) for c in (self.first, self.second)]
        target = (mean / corrected[0]) / ((square / corrected[1]).sqrt() + self.eps)
        factors = torch.where(finite & (lengths > 0), target / lengths, 1.0)
        scale_(grads, factors)
        rows["largest"], rows["norm"], rows["square"], rows["count"] = average, mean, square, count
        return ClipStats(norm, shares.to(norm.dtype))

    def _clip_entries(self, grads: list[Tensor], largest: Tensor, bound: Tensor, finite: Tensor) -> Tensor:
        """Scale the entries above their bound; the share of all entries that were."""
        counts = []
        for place, grad in enumerate(grads):
            clipped = finite[place] & (grad.abs() > bound[place])
            scale = torch.where(largest[place] > 0, bound[place] / largest[place], 1.0)
            grad.copy_(torch.where(clipped, grad * scale, grad))
            counts.append(clipped.sum())
        return torch.stack(counts).sum() / sum(grad.numel() for grad in grads)

    def state_dict(self) -> dict[str, Any]:
        return self._rows.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._rows.load_state_dict(state)
