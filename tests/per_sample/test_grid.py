"""Every configuration of the grid against autograd, in float64, for batches of 2, 3, 4, 5 and 9 samples."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from clipbench.per_sample import PerSampleClipper
from tests.per_sample.grid import FAMILIES
from tests.per_sample.grid.base import SIZES, Case, Losses
from tests.reference.from_graph import flat_gradient_of, sample_gradients_of
from tests.reference.per_sample import clipped_mean

BOUND = 1e-8
ALL = [(family, name) for family, cases in FAMILIES.items() for name in cases]


def off(model: nn.Module, losses: Losses, clipper: PerSampleClipper) -> tuple[float, float]:
    """Relative errors of one step: of the norms, and of the gradient over the sum of its samples' parts."""
    rows = sample_gradients_of(losses(), model)
    norms = rows.norm(dim=1)
    tau = float(norms.median()) or 1.0
    clipper.threshold = tau
    model.zero_grad()
    stats = clipper.backward(losses())
    wanted = clipped_mean(rows, torch.full_like(norms, tau))
    scale = float(norms.clamp(max=tau).mean()) or 1.0
    error = (flat_gradient_of(model) - wanted).norm() / scale
    return float(((stats.norms - norms).abs() / norms.clamp(min=1e-2 * float(norms.max()) or 1.0)).max()), float(error)


def check(case: Case, n: int, clipper: PerSampleClipper | None = None) -> None:
    torch.manual_seed(n)
    model, losses = case(n)
    errors = off(model, losses, clipper or PerSampleClipper(model, 1.0, verify=True))
    assert max(errors) < BOUND, f"n = {n}: norms off by {errors[0]:.2g}, gradient by {errors[1]:.2g}"


@pytest.mark.filterwarnings("ignore:no per-sample rule")
@pytest.mark.parametrize(("family", "name"), ALL)
def test_grid(family: str, name: str) -> None:
    for n in SIZES:
        check(FAMILIES[family][name], n)
