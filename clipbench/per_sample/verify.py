"""The check that a user asks for: norms and the weighted sum against one backward pass for each sample.

It shares nothing with the rules: autograd differentiates one loss at a time with respect to the parameters. It costs
n backward passes and reads values from the device.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from clipbench.per_sample.care import promoted
from clipbench.per_sample.engine import PerSampleGradients
from clipbench.per_sample.slots import Node

FLOOR = 1e-2
"""A norm is compared relative to itself, or to this share of the batch's largest where it is smaller than that."""
LISTED = 8
"""Parameters that an error names."""


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that get gradients, by name."""
    return {name: param for name, param in model.named_parameters() if param.requires_grad}


class Verification:
    """The truth about one step's `losses` (n,); made while their graph is alive, before the step's gradient is.

    norms: the engine's ‖g_k‖₂, (n,); weights: γ_k, (n,), of its sum Σ_k γ_k g_k. Samples whose gradient is not finite
    are left out. The bound on relative errors is the square root of eps of the coarsest dtype in which anything on the
    way to the parameters is computed: 1.5e-8 in float64, 3.5e-4 in float32, 0.03 in float16, 0.09 in bfloat16.
    """

    def __init__(self, model: nn.Module, losses: Tensor, norms: Tensor, weights: Tensor) -> None:
        self.params = trainable(model)
        sizes, self.wanted = _one_by_one(losses, self.params, weights)
        self.bound = coarsest(losses) ** 0.5
        truth = torch.linalg.vector_norm(sizes, dim=1)
        use = truth.isfinite() & norms.isfinite() & weights.isfinite()
        self.scale = float((weights.double().abs() * truth).sum()) if bool(use.all()) else math.inf
        self.complaints: list[str] = []
        if not _agree(norms, truth, use, self.bound):
            self.complaints += _wrong_norms(losses, self.params, sizes, use, self.bound)
            k = int((norms.double() - truth).abs().where(use, 0.0).argmax())
            self.complaints.append(f"the norm of sample {k} over all parameters is {truth[k]:.6g}, got {norms[k]:.6g}")

    def check(self) -> None:
        """Raise RuntimeError unless the norms and what is in `.grad` now are right."""
        complaints = self.complaints + _wrong_sums(self.params, self.wanted, self.bound * self.scale)
        if complaints:
            raise RuntimeError(
                "per-sample gradients must equal those of one backward pass a sample, got others (verify=True): "
                + "; ".join(complaints)
            )


def coarsest(losses: Tensor) -> float:
    """The largest eps of the dtypes of all values in the graph: a float64 model may compute a norm in float32."""
    found = torch.finfo(losses.dtype).eps
    stack: list[Node] = [losses.grad_fn]
    seen = {losses.grad_fn}
    while stack:
        node = stack.pop()
        for values in getattr(node, "_input_metadata", ()):
            if values.dtype.is_floating_point:
                found = max(found, torch.finfo(values.dtype).eps)
        for child, _ in node.next_functions:
            if child is not None and child not in seen:
                seen.add(child)
                stack.append(child)
    return found


def _one_by_one(
    losses: Tensor, params: Mapping[str, nn.Parameter], gamma: Tensor
) -> tuple[Tensor, dict[str, Tensor | None]]:
    """Norms (n, parameters) in float64, and Σ_k γ_k g_k of every parameter (None: no sample reaches it)."""
    leaves = list(params.values())
    sums: dict[str, Tensor | None] = dict.fromkeys(params)
    rows = []
    with torch.enable_grad():
        parts = losses.unbind()
    for weight, loss in zip(gamma.unbind(), parts, strict=True):
        grads = torch.autograd.grad(loss, leaves, retain_graph=True, allow_unused=True)
        row = []
        for name, grad in zip(params, grads, strict=True):
            if grad is None:
                row.append(losses.new_zeros((), dtype=torch.float64))
                continue
            grad = promoted(grad).detach()
            row.append(torch.linalg.vector_norm(grad.abs().double()))
            before = sums[name]
            part = grad * weight.to(grad.dtype)
            sums[name] = part if before is None else before + part
        rows.append(torch.stack(row))
    return torch.stack(rows), sums


def _agree(norms: Tensor, truth: Tensor, use: Tensor, bound: float) -> bool:
    """Whether norms (n,) agree with the truth on the samples of `use`."""
    floor = FLOOR * truth.where(use, 0.0).max()
    off = (norms.double() - truth).abs() > bound * truth.clamp(min=floor)
    return not bool((off & use).any())


def _wrong_norms(
    losses: Tensor, params: Mapping[str, nn.Parameter], sizes: Tensor, use: Tensor, bound: float
) -> list[str]:
    """One phrase for each parameter whose own norms differ; an engine for it alone says what is taken for them."""
    phrases = []
    for place, (name, param) in enumerate(params.items()):
        try:
            with warnings.catch_warnings(action="ignore"):
                alone = PerSampleGradients(nn.ParameterList([param])).collect(losses, retain_graph=True).norms()
        except ValueError as refused:  # what the whole model is not refused for, since other layers are in order
            phrases.append(f"{name} alone is refused ({refused})")
            continue
        if not _agree(alone, sizes[:, place], use, bound):
            off = (alone.double() - sizes[:, place]).abs().where(use, 0.0)
            share = float(off.max() / sizes[:, place].where(use, 0.0).max().clamp(min=torch.finfo(torch.float64).tiny))
            phrases.append(f"norms of {name} differ by {share:.2g} of the largest (sample {int(off.argmax())})")
    more = len(phrases) - LISTED
    return phrases[:LISTED] + ([f"and those of {more} more parameters"] if more > 0 else [])


def _size(tensor: Tensor) -> float:
    """The norm of a tensor, in float64: squares of float32's numbers leave its range."""
    return float(torch.linalg.vector_norm(tensor.abs().double()))


def _wrong_sums(params: Mapping[str, nn.Parameter], wanted: Mapping[str, Tensor | None], bound: float) -> list[str]:
    """One phrase for each parameter whose weighted sum is further than `bound` from the wanted one."""
    phrases = []
    for name, param in params.items():
        zero = torch.zeros_like(param)
        want, got = wanted[name], param.grad
        difference = (zero if want is None else want) - promoted(zero if got is None else got)
        off = _size(difference)
        if off > bound:
            size = _size(zero if want is None else want)
            phrases.append(f"the weighted sum of {name} differs by {off:.2g} (its norm is {size:.3g})")
    more = len(phrases) - LISTED
    return phrases[:LISTED] + ([f"and those of {more} more parameters"] if more > 0 else [])
