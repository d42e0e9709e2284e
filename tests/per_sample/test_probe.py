"""Owners read off weighted backward passes: every way in which several samples may pose as one."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor, nn

from clipbench.per_sample.layout import NOBODY, SHARED, Layout, Layouts, Segments
from clipbench.per_sample.probe import LOST, Probe, backward_to
from tests.per_sample.ragged import MODELS, uses_of


def owners_found(gradients: Tensor, probe: Probe | None = None) -> Tensor:
    """Owners of rows that get the gradients (n, rows, entries) from n losses, which are linear."""
    _, rows, width = gradients.shape
    layer = nn.Linear(2, width, bias=False, dtype=gradients.dtype)
    out = layer(torch.randn(rows, 2, dtype=gradients.dtype))
    losses = (gradients * out).sum((1, 2))
    uses = uses_of(losses, layer)
    deltas = backward_to(uses, losses, torch.ones_like(losses), True)
    return (probe or Probe()).owners(losses, uses, deltas)[0]


def owners_wanted(gradients: Tensor) -> Tensor:
    reached = (gradients != 0).any(2)
    count, first = reached.sum(0), reached.int().argmax(0) + 1
    return torch.where(count == 0, NOBODY, torch.where(count == 1, first, SHARED))


DTYPES = [torch.float64, torch.float32]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [2, 3, 5, 31, 32, 33, 600, 1025])
def test_every_sample_is_named(n: int, dtype: torch.dtype) -> None:
    torch.manual_seed(n)
    owner = torch.randint(-1, n, (2 * n,))
    gradients = torch.zeros(n, 2 * n, 3, dtype=dtype)
    size = 10.0 ** torch.randint(-12, 12, (2 * n, 1))  # samples of very unequal size
    rows = torch.nonzero(owner >= 0)[:, 0]
    gradients[owner[rows], rows] = (torch.randn(2 * n, 3) * size).to(dtype)[rows]
    assert torch.equal(owners_found(gradients), owner + 1)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [2, 3, 4, 5, 9, 40])
def test_two_samples_never_pose_as_one(n: int, dtype: torch.dtype) -> None:
    """Shares 1 : ±2**i, for which a mean of two weights can be a third, or zero; under fifty draws of the code."""
    shares = [sign * 2.0**i for i in range(-12, 13) for sign in (1, -1)] + [3.0, -3.0, 1 / 3, 7.0, 1e-5, -1e5]
    pairs = list(itertools.combinations(range(min(n, 4)), 2))
    gradients = torch.zeros(n, len(pairs) * len(shares), 1, dtype=dtype)
    for row, ((a, b), share) in enumerate(itertools.product(pairs, shares)):
        gradients[a, row], gradients[b, row] = 1.0, share
    probe = Probe()
    for _ in range(50):
        assert (owners_found(gradients, probe) == SHARED).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_shares_that_hide(dtype: torch.dtype) -> None:
    """In other entries, in tiny entries, by cancelling, beside a third sample."""
    table = {
        "entries of two samples": {0: [1.0, 0.0, 0.0], 1: [0.0, 1.0, 0.0]},
        "a tiny entry": {0: [1.0, 1.0, 0.0], 1: [0.0, 0.0, 1e-9]},
        "a tiny share of a tiny entry": {0: [1.0, 1.0, 1e-9], 1: [0.0, 0.0, 1e-12]},
        "cancelled": {0: [1.0, 2.0, 3.0], 1: [-1.0, -2.0, -3.0]},
        "cancelled beside another": {0: [1.0, 1.0, 1.0], 1: [-1.0, -1.0, -1.0], 2: [1.0, 2.0, 3.0]},
        "three alike": {0: [1.0, 1.0, 1.0], 1: [1.0, 1.0, 1.0], 2: [1.0, 1.0, 1.0]},
        "twice one and another": {0: [2.0, 4.0, 6.0], 2: [1.0, 2.0, 3.0]},
        "zero under two codes": {0: [1.0, -1.0, 0.0], 1: [1.0, -1.0, 0.0], 2: [-2.0, 2.0, 0.0]},
        "all": {k: [1.0, 1.0, 1.0] for k in range(5)},
    }
    gradients = torch.zeros(5, len(table), 3, dtype=dtype)
    for row, shares in enumerate(table.values()):
        for sample, values in shares.items():
            gradients[sample, row] = torch.tensor(values, dtype=dtype)
    probe = Probe()
    for _ in range(300):
        found = owners_found(gradients, probe)
        assert (found == SHARED).all(), [name for name, owner in zip(table, found, strict=True) if owner != SHARED]


@pytest.mark.parametrize("dtype", DTYPES)
def test_small_whole_numbers_at_random(dtype: torch.dtype) -> None:
    """Where coincidences are likeliest: sparse gradients from −2 … 2."""
    torch.manual_seed(0)
    probe = Probe()
    for n in (2, 3, 4, 5, 9, 40):
        for _ in range(10):
            gradients = torch.randint(-2, 3, (n, 200, 2)) * (torch.rand(n, 200, 1) < 1.3 / n)
            gradients = gradients.to(dtype)
            assert torch.equal(owners_found(gradients, probe), owners_wanted(gradients))


def test_rows_that_are_not_finite_have_no_owner() -> None:
    gradients = torch.zeros(3, 4, 2)
    gradients[0, 0], gradients[1, 1], gradients[2, 2] = 1.0, torch.inf, torch.nan
    assert owners_found(gradients).tolist() == [1, LOST, LOST, NOBODY]


def test_noise_that_cancels_within_a_sample_is_told_from_mixing() -> None:
    """A gradient that is zero but for rounding: not proportional to real weights, but exactly to powers of two."""
    torch.manual_seed(0)
    layer = nn.Linear(3, 4)
    out = layer(torch.randn(6, 3))
    unit = out / out.norm(dim=1, keepdim=True) * torch.rand(6, 1)
    rows = (unit / unit.norm(dim=1, keepdim=True)).square().sum(1)  # always one
    losses = torch.zeros(3).index_add(0, torch.tensor([0, 0, 0, 1, 1, 2]), rows)
    uses = uses_of(losses, layer)
    deltas = backward_to(uses, losses, torch.ones(3), True)
    assert 0.0 < torch.as_tensor(deltas[0][0]).abs().max() < 1e-6
    state = torch.get_rng_state()
    for owner, wanted in zip(Probe().owners(losses, uses, deltas)[0], (1, 1, 1, 2, 2, 3), strict=True):
        assert owner in (wanted, NOBODY)
    assert torch.equal(torch.get_rng_state(), state), "no other random stream moves, nor where rows are in doubt"


def test_no_other_random_stream_moves() -> None:
    torch.manual_seed(0)
    wanted = torch.randn(3)
    torch.manual_seed(0)
    model = MODELS["segments"]()
    batch = model.batch(4)
    losses = model(batch)
    state = torch.get_rng_state()
    uses = uses_of(losses, model)
    Probe().owners(losses, uses, backward_to(uses, losses, torch.ones(4), True))
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(0)
    assert torch.equal(torch.randn(3), wanted)


def test_layouts_from_owners() -> None:
    layouts = Layouts(3)
    assert layouts.find(torch.tensor([1, 1, 2, 0, 3, 3])) is Layout.MAJOR
    assert layouts.find(torch.tensor([1, 2, 3, 1, 2, 0])) is Layout.MINOR
    assert layouts.find(torch.tensor([1, 2, 3])) is Layout.MAJOR
    assert layouts.find(torch.tensor([1, SHARED, 3])) is None
    assert layouts.find(torch.tensor([1, LOST, 3])) is None
    assert isinstance(layouts.find(torch.tensor([1, 1, 1, 2, 3])), Segments)
    assert layouts.find(torch.tensor([2, 1, 3])) is layouts.find(torch.tensor([2, 1, 3]))


def test_segments_by_hand() -> None:
    segments = Segments(torch.tensor([3, 1, 0, 3, 3]), 3)
    rows = torch.tensor([[1.0], [2.0], [torch.nan], [4.0], [5.0]])  # nobody's row is never read
    assert segments.split(rows, 3)[..., 0].tolist() == [[2.0, 0.0, 0.0], [0.0, 0.0, 0.0], [1.0, 4.0, 5.0]]
    assert segments.spread(torch.tensor([10.0, 20.0, 30.0]), 5).tolist() == [30.0, 10.0, 0.0, 30.0, 30.0]
    assert segments.spread(torch.tensor([True, True, True]), 5).tolist() == [True, True, False, True, True]
    assert segments.positions(5, 3) == 3
    sizes = {tuple(samples.tolist()): places.shape[1] for samples, places, _ in segments.groups(rows.device)}
    assert sizes == {(0,): 1, (2,): 3}
