"""Outliers put into a batch, and the layers' gradients with and without them.

A mini-batch gradient is a mean over samples, so replacing m of them changes it by the difference of their own
gradients: the rest's sum is formed once, and each kind of outlier costs m samples instead of a whole batch. (No model
here mixes samples; dropout is off.)

    targets   another class than the true one, or random tokens
    inputs    Gaussian noise in place of the image or vector, or random tokens; the targets stay
    loss      the samples' own loss times a factor
    control   other clean samples
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from clipbench.data.base import Batch, Task

KINDS = ("control", "targets", "inputs", "loss")
Gradients = dict[str, Tensor]


def matrix_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Trained parameters with two dimensions or more, by name; embeddings are left out, tied ones too."""
    tables = {id(p) for module in model.modules() if isinstance(module, nn.Embedding) for p in module.parameters()}
    named = model.named_parameters()
    return {name: p for name, p in named if p.requires_grad and p.dim() >= 2 and id(p) not in tables}


def spoiled(batch: Batch, kind: str, outputs: int, draw: torch.Generator) -> Batch:
    """The samples with random targets or random inputs. Class targets (integers) only; `outputs`: how many."""
    inputs, targets = batch.inputs, batch.targets
    if kind == "inputs":
        random = torch.randint(outputs, inputs.shape, generator=draw, device=draw.device)
        if inputs.is_floating_point():
            random = torch.randn(inputs.shape, generator=draw, device=draw.device, dtype=inputs.dtype)
        return Batch(random, targets)
    if targets.dim() == 1:  # never the true class
        shift = torch.randint(1, outputs, targets.shape, generator=draw, device=draw.device)
        return Batch(inputs, (targets + shift) % outputs)
    return Batch(inputs, torch.randint(outputs, targets.shape, generator=draw, device=draw.device))


def summed(model: nn.Module, task: Task, batch: Batch) -> Gradients:
    """Σ of the samples' gradients, by name, each as a float64 matrix (shape[0], −1)."""
    found = matrix_parameters(model)
    loss = task.losses(model(batch.inputs), batch).sum()
    gradients = torch.autograd.grad(loss, list(found.values()))
    return {name: g.double().flatten(1) for name, g in zip(found, gradients, strict=True)}


def part(batch: Batch, start: int, stop: int) -> Batch:
    """Samples start … stop − 1."""
    return Batch(batch.inputs[start:stop], batch.targets[start:stop])


def nested(model: nn.Module, task: Task, batch: Batch, counts: Sequence[int]) -> dict[int, Gradients]:
    """The summed gradients of the first m samples, for every m in `counts` (ascending)."""
    found: dict[int, Gradients] = {}
    total: Gradients = {}
    for start, stop in zip([0, *counts[:-1]], counts, strict=True):
        step = summed(model, task, part(batch, start, stop))
        total = {name: total[name] + g for name, g in step.items()} if total else step
        found[stop] = total
    return found


def with_outliers(
    model: nn.Module, task: Task, batch: Batch, spare: Batch, counts: Sequence[int], factor: float, outputs: int,
    draw: torch.Generator,
) -> tuple[Gradients, dict[tuple[str, int], Gradients]]:  # fmt: skip
    """The mean gradient of `batch`, and of the batch with its first m samples replaced, by (kind, m).

    spare: at least max(counts) other clean samples, for the control.  factor: on the loss.
    """
    n, most = len(batch.inputs), counts[-1]
    first = part(batch, 0, most)
    own = nested(model, task, first, counts)
    sums = {"control": nested(model, task, part(spare, 0, most), counts)}
    for kind in ("targets", "inputs"):
        sums[kind] = nested(model, task, spoiled(first, kind, outputs, draw), counts)
    sums["loss"] = {m: {name: factor * g for name, g in own[m].items()} for m in counts}
    rest = (
        summed(model, task, part(batch, most, n))
        if most < n
        else {k: torch.zeros_like(g) for k, g in own[most].items()}
    )
    whole = {name: rest[name] + own[most][name] for name in rest}
    changed = {
        (kind, m): {name: (whole[name] - own[m][name] + sums[kind][m][name]) / n for name in whole}
        for kind in KINDS
        for m in counts
    }
    return {name: g / n for name, g in whole.items()}, changed


def singular_values(matrix: Tensor) -> Tensor:
    """All of them, largest first, float64: √ of the eigenvalues of G Gᵀ on the shorter side."""
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.mT
    return torch.linalg.eigvalsh(wide @ wide.mT).clamp_min(0.0).flip(0).sqrt()


def change(before: Tensor, after: Tensor, floor: float) -> tuple[float, float]:
    """log(s₁′/s₁), and the median of log(s_i′/s_i) over the middle half of the s_i > floor · s₁."""
    rank = int((before > floor * before[0]).sum())
    middle = slice(rank // 4, max(rank // 4 + 1, (3 * rank) // 4))
    smallest = torch.finfo(before.dtype).tiny
    ratios = (after.clamp_min(smallest) / before.clamp_min(smallest)).log()
    return float(ratios[0]), float(ratios[middle].quantile(0.5))
