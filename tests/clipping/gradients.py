"""A module with parameters of every kind, and gradients for it."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn


def model() -> nn.Sequential:
    """Convolution, norms, linear layers (two of one shape), an embedding and a head."""
    torch.manual_seed(0)
    layers: dict[str, nn.Module] = {
        "wte": nn.Embedding(11, 8),
        "conv": nn.Conv2d(3, 6, 5),
        "norm": nn.LayerNorm(8),
        "first": nn.Linear(8, 12),
        "second": nn.Linear(8, 12),
        "tall": nn.Linear(5, 80),
        "lm_head": nn.Linear(8, 4),
    }
    sequential = nn.Sequential()
    for name, layer in layers.items():
        sequential.add_module(name, layer)
    return sequential


def fill(module: nn.Module, seed: int, scale: float = 1.0) -> dict[str, np.ndarray]:
    """Heavy-tailed random gradients; also as float64 arrays by name."""
    random = np.random.default_rng(seed)
    found = {}
    for name, parameter in module.named_parameters():
        values = scale * random.standard_t(2.0, tuple(parameter.shape))
        parameter.grad = torch.tensor(values, dtype=torch.float32)
        found[name] = parameter.grad.double().numpy()
    return found


def now(module: nn.Module) -> dict[str, Tensor]:
    """The gradients as they are."""
    return {name: parameter.grad for name, parameter in module.named_parameters() if parameter.grad is not None}


def largest_difference(found: dict[str, Tensor], expected: dict[str, np.ndarray]) -> float:
    """Largest difference over the largest entry of the WHOLE gradient."""
    top = max(float(np.abs(array).max()) for array in expected.values())
    return max(float(np.abs(found[name].double().numpy() - expected[name]).max()) for name in expected) / top
