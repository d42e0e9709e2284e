"""Numbers that decide between ways to the same result, and what is set aside: by hand, as a step seldom shows them."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from clipbench.per_sample import PerSampleClipper, cost, derived, heap, opaque, rules, slots, surrogates
from clipbench.per_sample.aside import Aside
from clipbench.per_sample.care import least
from clipbench.per_sample.engine import PerSampleGradients
from clipbench.per_sample.hooks import Watch
from tests.per_sample.ragged import error, sample_gradients, squares


def test_costs_by_hand() -> None:
    assert cost.traffic_cost(100.0, cost.CHUNK_BYTES) == 200.0
    assert cost.traffic_cost(100.0, cost.CHUNK_BYTES + 1) == 1200.0
    # Two Gram matrices of 3 × 3 entries, four bytes each, are written, read, multiplied and read: 4 · 36 bytes.
    assert cost.gram_cost(3, 4, 5) == 2 * 9 * (4 + 5 + 1) + 2 * 4 * 36
    # A gradient of 4 × 5 entries from 3 positions, and its norm.
    assert cost.instance_cost(3, 4, 5) == 2 * 3 * 20 + 2 * 20 + 2 * 2 * 80
    grams = cost.gram_cost(4, 5, 0) + cost.gram_cost(3, 6, 0)
    assert cost.position_gram_cost(4, 3, 2, 5, 6) == grams + 2 * 4**2 * 3**2, "as a matrix"
    grams = cost.gram_cost(40, 5, 0) + cost.gram_cost(3, 6, 0)
    assert cost.position_gram_cost(40, 3, 2, 5, 6) == grams + 3 * 2 * 12 * 2 * 3**2, "as slices"


def test_the_cheaper_way_by_hand() -> None:
    # 3 × 3 on a map of 2 × 2: a window meets 16 of its 36 pairs; by taps pays where channels are many.
    assert cost.prefers_taps(16, 36, 512, 512)
    assert not cost.prefers_taps(16, 36, 64, 64)
    assert not cost.prefers_taps(30, 36, 512, 512)
    assert cost.prefers_folding(15, 10)
    assert not cost.prefers_folding(16, 10)
    assert cost.chunk_size(2.0**20, "cpu") == 2
    assert cost.chunk_size(2.0**20, "cuda") == 256
    assert cost.chunk_size(2.0**40, "cpu") == cost.chunk_size(2.0**40, "cuda") == 1
    assert cost.chunk_size(0.0, "cpu") == cost.CHUNK_BYTES


def test_the_least_norm_by_hand() -> None:
    """Half of 2²⁷ squares that are just below the smallest normal number are missed at most."""
    assert least(torch.float32) == least(torch.bfloat16) == 2.0**-49
    assert least(torch.float64) == 2.0**-497


def test_a_block_that_glibc_adapts_to() -> None:
    """Its largest threshold is 32 MiB; a mapped block has a header and ends at a page's end."""
    assert 16 << 20 < heap.BYTES < (32 << 20) - 4096


def test_names_in_tables_are_torchs() -> None:
    """One that is misspelt, or that torch no longer has, would never be met: its case would take a slow path."""
    for module in (surrogates, opaque):
        for name, table in vars(module).items():
            if name.isupper() and isinstance(table, (frozenset, dict)) and name not in ("LEAKS", "HANDED_ON"):
                assert table
                assert [one for one in table if not hasattr(torch.ops.aten, one)] == [], name
    for name in opaque.LEAKS | opaque.HANDED_ON:
        assert hasattr(torch.Tensor, name)
    for table in (rules.READERS, slots.REINDEXINGS, slots.CUTS, slots.SWAPS, slots.RESHAPES, slots.SAME):
        assert [one for one in table if not hasattr(torch._C._functions, one)] == []


def test_gradients_aside_come_back_as_the_same_tensors() -> None:
    params = [nn.Parameter(torch.zeros(2)) for _ in range(4)]
    old = [torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0]), torch.tensor([5.0, 6.0])]
    for param, grad in zip(params, old, strict=False):
        param.grad = grad
    aside = Aside(params)
    assert [param.grad for param in params] == [None] * 4
    params[0].grad, params[1].grad = torch.ones(2), torch.ones(2)
    aside.merge(only=lambda grad: grad is not old[1])
    assert params[0].grad is old[0]
    assert old[0].tolist() == [2.0, 3.0]
    assert params[1].grad.tolist() == [1.0, 1.0]
    assert params[2].grad is old[2]
    params[0].grad = torch.full((2,), 10.0)
    aside.merge()
    assert params[1].grad is old[1]
    assert old[1].tolist() == [4.0, 5.0]
    assert params[0].grad.tolist() == [10.0, 10.0], "it has come back once"
    assert params[3].grad is None


def test_gradients_aside_are_restored() -> None:
    params = [nn.Parameter(torch.zeros(2)) for _ in range(2)]
    params[0].grad = old = torch.tensor([1.0, 2.0])
    aside = Aside(params)
    params[0].grad, params[1].grad = torch.ones(2), torch.ones(2)
    aside.restore(params)
    assert params[0].grad is old
    assert old.tolist() == [1.0, 2.0]
    assert params[1].grad is None


@pytest.mark.parametrize(("room", "batches"), [(3840, 1), (3839, 2), (1, 2)])
def test_groups_of_parameters_go_through_the_graph_in_batches(
    room: int, batches: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two weights that are products of two parameters each: 8 · 48 bytes for each of five samples."""
    monkeypatch.setattr(derived, "SUBGRAPH_BYTES", room)
    torch.manual_seed(0)
    net = nn.ParameterList([nn.Parameter(torch.randn(4, 4).double()) for _ in range(4)])
    losses = squares(F.linear(F.linear(torch.randn(5, 4).double(), net[0] * net[1]), net[2] * net[3]))
    gradients = PerSampleGradients(net).collect(losses, retain_graph=True)
    assert len(gradients.entangled) == batches
    torch.testing.assert_close(gradients.norms(), sample_gradients(losses, net).norm(dim=1))


def test_a_layer_that_is_called_on_no_rows_as_well() -> None:
    torch.manual_seed(0)
    layer, x = nn.Linear(4, 3).double(), torch.randn(5, 4).double()
    clipper = PerSampleClipper(layer, 1.0)
    for _ in range(2):
        assert error(clipper, layer, squares(layer(x)) + layer(x[:0]).sum()) < 1e-12


def test_hooks_are_asked_for_once() -> None:
    watch = Watch()
    assert watch.due([])
    watch.looked()
    assert not watch.due([])
    torch.zeros(1, requires_grad=True).register_hook(lambda grad: None)
    assert watch.due([])
    watch.looked()
    assert not watch.due([])
