"""Norms of a model's gradients over some batches: per sample, of the whole, and of every layer."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from clipbench.clipping.selection import SKIP, matches
from clipbench.per_sample import PerSampleClipper
from clipbench.spectral import as_matrix

SampleLosses = Callable[[nn.Module, Any], Tensor]
"""(model, batch) → losses (n,), one per sample."""


class Norms(NamedTuple):
    """What was measured, in float64 on the CPU; nothing was clipped.

    samples: ‖g_k‖ of every sample, (samples,); positions: k = 1 … n of each in its batch, (samples,).
    gradients: norm of each batch's mean gradient, (batches,). layers, spectral: by layer, Frobenius and spectral norm
    of its mean gradient as a matrix, (batches,); spectral leaves out what spectral clipping leaves alone.
    """

    samples: Tensor
    positions: Tensor
    gradients: Tensor
    layers: dict[str, Tensor]
    spectral: dict[str, Tensor]


def measure(
    model: nn.Module, loader: Iterable[Any], losses: SampleLosses, batches: int = 10, skip: Sequence[str] = SKIP
) -> Norms:
    """Norms over the first `batches` batches of `loader` at the model's weights, which stay, as does `.grad`.

    Raises ValueError for batches < 1, an empty loader, or a model that mixes samples.
    """
    if batches < 1:
        raise ValueError(f"batches must be >= 1, got {batches}")
    clipper = PerSampleClipper(model, float("inf"), process_group=None)
    named = {name: param for name, param in model.named_parameters() if param.requires_grad}
    samples, positions, rows = [], [], []
    for batch in itertools.islice(loader, batches):
        with torch.enable_grad():
            each = losses(model, batch)
        norms = clipper.norms(each).detach().double().cpu()
        samples.append(norms)
        positions.append(torch.arange(1, len(norms) + 1, dtype=torch.float64))
        found = torch.autograd.grad(each.mean(), list(named.values()), allow_unused=True)
        rows.append({name: _pair(grad) for name, grad in zip(named, found, strict=True) if grad is not None})
    if not rows:
        raise ValueError("loader must give at least one batch, got none")
    names = list(dict.fromkeys(name for row in rows for name in row))
    layers = {name: torch.stack([row[name][0] for row in rows if name in row]) for name in names}
    spectral = {
        name: torch.stack([row[name][1] for row in rows if name in row]) for name in names if not matches(name, skip)
    }
    whole = torch.stack([torch.stack([frobenius for frobenius, _ in row.values()]).norm() for row in rows])
    return Norms(torch.cat(samples), torch.cat(positions), whole, layers, spectral)


def _pair(grad: Tensor) -> tuple[Tensor, Tensor]:
    """Frobenius and spectral norm of a layer's gradient, as spectral clipping makes a matrix of it."""
    matrix = as_matrix(grad).double().cpu()
    return torch.linalg.vector_norm(matrix), torch.linalg.matrix_norm(matrix, 2)
