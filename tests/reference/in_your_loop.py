"""Clipped mean gradients by autograd in float64, sample by sample, of a copy of a model."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

Gradient = dict[str, Tensor]


def sample_gradients(model: nn.Module, losses: Callable[[nn.Module], Tensor]) -> list[Gradient]:
    """The gradient of each sample's loss."""
    double = copy.deepcopy(model).double()
    params = dict(double.named_parameters())
    found = []
    for loss in losses(double):
        grads = torch.autograd.grad(loss, list(params.values()), retain_graph=True, allow_unused=True)
        found.append(
            {n: torch.zeros_like(p) if g is None else g for (n, p), g in zip(params.items(), grads, strict=True)}
        )
    return found


def mean(gradients: list[Gradient], tau: Callable[[int], float]) -> Gradient:
    """(1/n) Σ min(1, τ(k)/‖g_k‖) g_k, k = 1 … n."""
    n = len(gradients)
    total = {name: torch.zeros_like(value) for name, value in gradients[0].items()}
    for k, gradient in enumerate(gradients, 1):
        norm = sum(float(value.square().sum()) for value in gradient.values()) ** 0.5
        for name, value in gradient.items():
            total[name] += value * (min(1.0, tau(k) / norm) / n)
    return total


def norm_clipped(gradient: Gradient, tau: float) -> Gradient:
    """g min(1, τ/‖g‖)."""
    norm = sum(float(value.square().sum()) for value in gradient.values()) ** 0.5
    return {name: value * min(1.0, tau / norm) for name, value in gradient.items()}


def spectrally_clipped(gradient: Gradient, tau: float) -> Gradient:
    """U diag(min(s, τ)) Vᵀ, layer by layer."""
    clipped = {}
    for name, value in gradient.items():
        u, s, vh = torch.linalg.svd(value.reshape(len(value), -1), full_matrices=False)
        clipped[name] = (u @ torch.diag(s.clamp_max(tau)) @ vh).reshape(value.shape)
    return clipped
