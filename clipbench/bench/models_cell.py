"""The job "exactness" of a child process: one model's norms and gradients against autograd, sample by sample."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from clipbench.bench.peers import ENGINES, quiet
from clipbench.bench.problems import Problem, problem
from clipbench.per_sample import PerSampleClipper

SIZES = (2, 3, 4, 5, 9)
PEERS_ON = 4  # samples on which the peers' gradients are compared
SLOW = re.compile(r"no per-sample rule covers how (?:these parameters are used: )?(.*?)(?:; their gradients| is used)")
NAMED = re.compile(r"([\w.]+)(?: \(((?:[^()]|\([^()]*\))*)\))?(?:, |$)")  # a name, and perhaps the reason behind it


def exactness(model: str, engines: Sequence[str]) -> dict[str, Any]:
    """Largest relative errors of norms and clipped gradients over all SIZES, and the names on the slow path.

    Both sides run in float64 on one graph: what differs is the way to the gradient, not rounding in the model (some
    models compute parts in float32 whatever they are given; there both agree to float32's precision only). For each
    size a clipper of its own, and one for all of them in turn, which must not carry over what it learnt.
    `errors`: the gradient of each of `engines` in float32, over its largest entry; words where it fails.
    """
    found: dict[str, Any] = {"norm_error": 0.0, "gradient_error": 0.0, "slow": {}, "complaint": None}
    whole = doubled(problem(model, max(SIZES), dropout=False))
    found["parameters"] = sum(p.numel() for p in whole.model.parameters())
    lasting = PerSampleClipper(whole.model, 1.0)
    for n in SIZES:
        case = whole._replace(inputs=whole.inputs[:n], targets=whole.targets[:n])
        rows = one_by_one(case)
        for clipper in (PerSampleClipper(whole.model, 1.0), lasting):
            try:
                errors = compared(case, rows, clipper)
            except Exception as error:  # refused, or broken: a finding of this table
                found["complaint"] = f"n = {n}: {type(error).__name__}: {str(error).splitlines()[0][:200]}"
                continue
            found["norm_error"] = max(found["norm_error"], errors[0])
            found["gradient_error"] = max(found["gradient_error"], errors[1])
            found["slow"].update(errors[2])
        if n == PEERS_ON:
            found |= peers(model, whole, rows, engines)
        del rows
    if found["complaint"] is not None:
        found["norm_error"] = found["gradient_error"] = None
    return found


def doubled(case: Problem) -> Problem:
    """In float64 and complex128."""
    inputs = case.inputs.double() if case.inputs.is_floating_point() else case.inputs
    model = case.model.double()._apply(lambda x: x.to(torch.complex128) if x.is_complex() else x)
    return case._replace(model=model, inputs=inputs)


def one_by_one(case: Problem) -> list[Tensor]:
    """Every sample's gradient as one vector, by autograd on its own loss."""
    model, inputs, targets, losses = case
    params = [p for p in model.parameters() if p.requires_grad]
    values = losses(model(inputs), targets)
    return [flat(params, torch.autograd.grad(loss, params, retain_graph=True, allow_unused=True)) for loss in values]


def clipped_mean(rows: Sequence[Tensor], threshold: float) -> Tensor:
    """(1/n) Σ_k min(1, τ/‖g_k‖) g_k."""
    total = torch.zeros_like(rows[0])
    for row in rows:
        total += row * min(1.0, threshold / row.norm().item())
    return total / len(rows)


def compared(case: Problem, rows: Sequence[Tensor], clipper: PerSampleClipper) -> tuple[float, float, dict[str, str]]:
    """Errors of norms (relative to each) and gradient (over its largest entry), and names on the slow path."""
    model, inputs, targets, losses = case
    norms = torch.stack([row.norm() for row in rows])
    clipper.threshold = norms.median().item()
    model.zero_grad()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        stats = clipper.backward(losses(model(inputs), targets))
    slow = {name: why for each in caught for name, why in slow_names(str(each.message)).items()}
    off = ((stats.norms - norms).abs() / norms).max().item()
    return off, distance(model, clipped_mean(rows, clipper.threshold)), slow


def slow_names(message: str) -> dict[str, str]:
    """Parameters on the slow path, and why, from what the clipper warns of (see `per_sample.fallback`)."""
    found = SLOW.search(message)
    return dict(NAMED.findall(found[1])) if found else {}


def distance(model: nn.Module, truth: Tensor) -> float:
    """Largest difference between `.grad` and the truth over the truth's largest entry."""
    params = [p for p in model.parameters() if p.requires_grad]
    return ((flat(params, [p.grad for p in params]) - truth).abs().max() / truth.abs().max()).item()


def peers(model: str, whole: Problem, rows: Sequence[Tensor], engines: Sequence[str]) -> dict[str, Any]:
    """`errors` of the engines in float32 on the samples of `rows`, and the `threshold`, the median of their norms."""
    n = len(rows)
    inputs = whole.inputs[:n].float() if whole.inputs.is_floating_point() else whole.inputs[:n]
    threshold = torch.stack([row.norm() for row in rows]).median().item()
    errors: dict[str, Any] = {}
    quiet()
    for engine in engines:
        truth = clipped_mean(rows, float("inf") if engine == "sgd" else threshold)
        own = problem(model, n, dropout=False)._replace(inputs=inputs, targets=whole.targets[:n])
        try:
            ENGINES[engine](own, torch.optim.SGD(own.model.parameters(), lr=0.0), threshold, 0)()
            errors[engine] = distance(own.model, truth)
        except ImportError as missing:
            errors[engine] = f"not installed: {missing.name}"
        except Exception as error:  # a peer that cannot do a model is a finding of this table
            errors[engine] = (
                f"failed: {str(error).strip().splitlines()[0][:200] if str(error) else type(error).__name__}"
            )
    return {"errors": errors, "threshold": threshold}


def flat(params: Sequence[Tensor], grads: Sequence[Tensor | None]) -> Tensor:
    """All gradients as one float64 vector, complex entries as pairs, zeros where there is none."""
    full = [torch.zeros_like(p) if g is None else g for p, g in zip(params, grads, strict=True)]
    return torch.cat([(torch.view_as_real(g) if g.is_complex() else g).double().flatten() for g in full])
