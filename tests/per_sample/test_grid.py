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
ALL = [pytest.param(case, id=f"{family}-{name}") for family, cases in FAMILIES.items() for name, case in cases.items()]


def off(model: nn.Module, losses: Losses, clipper: PerSampleClipper) -> tuple[float, float]:
    """Relative errors of one step: of the norms, and of the gradient over the sum of its samples' parts."""
    values = losses()
    rows = sample_gradients_of(values, model)
    norms = rows.norm(dim=1)
    tau = float(norms.median()) or 1.0
    clipper.threshold = tau
    model.zero_grad()
    stats = clipper.backward(values)
    error = (flat_gradient_of(model) - clipped_mean(rows, torch.full_like(norms, tau))).norm()
    floor = 1e-2 * float(norms.max()) or 1.0
    off_norms = float(((stats.norms - norms).abs() / norms.clamp(min=floor)).max())
    return off_norms, float(error) / (float(norms.clamp(max=tau).mean()) or 1.0)


def check(case: Case, n: int) -> None:
    torch.manual_seed(n)
    model, losses = case(n)
    errors = off(model, losses, PerSampleClipper(model, 1.0))
    assert max(errors) < BOUND, f"n = {n}: norms off by {errors[0]:.2g}, gradient by {errors[1]:.2g}"


@pytest.mark.filterwarnings("ignore:no per-sample rule")
@pytest.mark.parametrize(("case", "n"), [pytest.param(*p.values, 2 + k % 2, id=p.id) for k, p in enumerate(ALL)])
def test_grid(case: Case, n: int) -> None:
    """Two or three samples: where a layout is mistaken most easily."""
    check(case, n)


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.filterwarnings("ignore:no per-sample rule")
@pytest.mark.parametrize("case", ALL)
def test_grid_at_all_sizes_and_one_clipper_for_all(case: Case) -> None:
    """What a clipper learnt of one size must not be carried over to another; `verify` agrees with the twin."""
    for n in SIZES:
        check(case, n)
    torch.manual_seed(0)
    model, _ = case(3)
    clipper = PerSampleClipper(model, 1.0, verify=True)
    for n in (4, 2, 9, 3, 5, 2):
        torch.manual_seed(n)
        other, losses = case(n)
        graft(model, other)
        assert max(off(model, losses, clipper)) < BOUND


def graft(model: nn.Module, other: nn.Module) -> None:
    """Make the parameters of `model` those of `other`, which has the same modules."""
    for name, param in model.named_parameters(remove_duplicate=False):
        path, _, last = name.rpartition(".")
        setattr(other.get_submodule(path), last, param)
