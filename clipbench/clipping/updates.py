"""Rules that only make sense on the update, per unit of learning rate; `method.update` also takes any clipper."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from clipbench.clipping.base import (
    Clipper,
    ClipStats,
    NamedParameters,
    check_positive,
    gradients,
    norms,
    pairs,
    scale_,
    total,
)
from clipbench.config.checks import fraction, require


class NormalizedUpdate(Clipper):
    """Normalised momentum (Cutkosky, Mehta 2021, arXiv 2106.14343): θ ← θ − η m/‖m‖, with m what the optimizer adds.

    After SGD with momentum, whose m may have any scale; the norm is over all parameters together. An update of zero
    stays zero, one whose norm is not finite stays as it is. Every other update counts as clipped.
    """

    acts_below_threshold = True

    def __call__(self, named_parameters: NamedParameters) -> ClipStats:
        _, updates = gradients(named_parameters)
        norm = total(norms(updates))
        scaled = torch.isfinite(norm) & (norm > 0)
        scale_(updates, torch.where(scaled, 1.0 / norm, 1.0))
        return ClipStats(norm, scaled.to(norm.dtype))


class MixClip(Clipper):
    """MixClip (Zhang et al. 2020, arXiv 2010.02519, algorithm 1): θ ← θ − η [ν clip_τ(m) + (1 − ν) clip_τ(g)].

        clip_τ(x) = x min(1, τ/‖x‖),   m ← βm + (1 − β) g

    After SGD with momentum β: m is what it adds times `scale` = 1 − β (torch's SGD adds βm + g). The paper's γ is ητ.
    mix: ν in [0, 1]. `clipped_fraction` is that of m. Raises ValueError where an option is out of range.
    """

    acts_below_threshold = True

    def __init__(self, threshold: float, mix: float = 0.7, scale: float = 0.1) -> None:
        self.threshold = check_positive("threshold", threshold)
        require(0 <= mix <= 1, "mix", "in [0, 1]", mix)
        self.mix, self.scale = float(mix), check_positive("scale", scale)
        self._seen: dict[str, Tensor] = {}

    def observe(self, named_parameters: NamedParameters) -> None:
        """Keep the gradient that the optimizer is about to use."""
        self._seen = {name: p.grad.detach().clone() for name, p in pairs(named_parameters) if p.grad is not None}

    def __call__(self, named_parameters: NamedParameters) -> ClipStats:
        names, updates = gradients(named_parameters)
        grads = [self._seen[name] for name in names]
        momentum, gradient = (total(norms(part)) for part in (updates, grads))
        momentum = momentum * self.scale
        scale_(updates, self.mix * self.scale * self._factor(momentum))
        scale_(grads, (1 - self.mix) * self._factor(gradient))
        torch._foreach_add_(updates, grads)
        self._seen = {}
        return ClipStats(momentum, (momentum > self.threshold).to(momentum.dtype))

    def _factor(self, norm: Tensor) -> Tensor:
        return torch.where(torch.isfinite(norm) & (norm > self.threshold), self.threshold / norm, 1.0)


class RmsClip(Clipper):
    """StableAdamW's update clipping (Wortsman et al. 2023, arXiv 2304.13013, algorithm 2), per parameter.

        RMS = √mean_i(g_i²/max(v_i, ε²)),   u ← u/max(1, RMS),   v ← β̂v + (1 − β̂) g²,   β̂ = β(1 − βᵗ⁻¹)/(1 − βᵗ)

    v is AdamW's second moment of the same β, kept here so that the rule follows any optimizer. coefficient: β;
    eps: ε. Gradients that are not finite leave v and the update as they are. Raises ValueError where an option is out
    of range.
    """

    def __init__(self, coefficient: float = 0.99, eps: float = 1e-6) -> None:
        fraction("coefficient", coefficient)
        self.coefficient, self.eps = float(coefficient), check_positive("eps", eps)
        self._squares: dict[str, Tensor] = {}
        self._steps: dict[str, int] = {}
        self._ratios: dict[str, Tensor] = {}

    def observe(self, named_parameters: NamedParameters) -> None:
        """Take in the gradient that the optimizer is about to use."""
        for name, parameter in pairs(named_parameters):
            if parameter.grad is None:
                continue
            grad = parameter.grad.detach()
            square = grad.double().square() if grad.dtype == torch.float64 else grad.float().square()
            step = self._steps[name] = self._steps.get(name, 0) + 1
            beta = self.coefficient * (1 - self.coefficient ** (step - 1)) / (1 - self.coefficient**step)
            past = self._squares.get(name)
            average = square.clone() if past is None else torch.lerp(square, past.to(grad.device), beta)
            finite = torch.isfinite(square).all()
            kept = torch.zeros_like(square) if past is None else past.to(grad.device)
            self._squares[name] = torch.where(finite, average, kept)
            ratio = (square / self._squares[name].clamp_min(self.eps**2)).mean().sqrt()
            self._ratios[name] = torch.where(finite, ratio, 1.0)

    def __call__(self, named_parameters: NamedParameters) -> ClipStats:
        names, updates = gradients(named_parameters)
        norm = total(norms(updates))
        if not names:
            return ClipStats(norm, torch.zeros_like(norm))
        ratios = torch.stack([self._ratios[name].to(norm.dtype) for name in names])
        factors = 1.0 / ratios.clamp_min(1.0)
        scale_(updates, factors)
        return ClipStats(norm, (ratios > 1).to(norm.dtype).mean())

    def state_dict(self) -> dict[str, Any]:
        squares = {name: tensor.clone() for name, tensor in self._squares.items()}
        return {"squares": squares, "steps": dict(self._steps)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._squares = {name: tensor.clone() for name, tensor in state["squares"].items()}
        self._steps = dict(state["steps"])
