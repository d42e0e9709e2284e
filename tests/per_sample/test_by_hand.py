"""Numbers that decide between ways to the same result, and what is set aside: by hand, as a step seldom shows them."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from clipbench.per_sample import PerSampleClipper, cost, derived, fallback, heap, opaque, rules, slots, surrogates
from clipbench.per_sample.aside import Aside
from clipbench.per_sample.care import least
from clipbench.per_sample.distributed import BUCKET, _buckets, _refuse_options
from clipbench.per_sample.engine import PerSampleGradients
from clipbench.per_sample.hooks import Watch
from tests.per_sample.ragged import error, sample_gradients, squares, uses_of
from tests.per_sample.zoo import Rotated


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


def test_gradients_that_were_written_to_before_a_first_step() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(4, 3).double()
    losses = squares(layer(torch.randn(5, 4).double()))
    wanted = sample_gradients(losses, layer).mean(0)
    for param in layer.parameters():
        param.grad = torch.zeros_like(param).add_(1.0)
    PerSampleClipper(layer, float("inf")).backward(losses)
    found = torch.cat([param.grad.flatten() for param in layer.parameters() if param.grad is not None])
    torch.testing.assert_close(found, wanted + 1.0)


def test_layers_of_two_precisions() -> None:
    torch.manual_seed(0)
    net = nn.ModuleList([nn.Linear(4, 5).double(), nn.Linear(5, 3)])
    clipper = PerSampleClipper(net, 1.0)
    for shape in ((5, 4), (5, 6, 4)):
        losses = squares(net[1](net[0](torch.randn(shape).double()).float()))
        assert error(clipper, net, losses.double()) < 1e-5


@pytest.mark.filterwarnings("ignore:no per-sample rule")
@pytest.mark.parametrize("room", [0, 1 << 26])
def test_the_slow_path_whether_gradients_are_kept_or_not(room: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fallback, "SUBGRAPH_BYTES", room)
    torch.manual_seed(0)
    model = Rotated().double()
    clipper = PerSampleClipper(model, 1.0)
    assert error(clipper, model, squares(model(torch.randn(5, 6).double()))) < 1e-12
    model.zero_grad()
    clipper.backward(squares(model(torch.randn(5, 6).double())) * torch.tensor([1.0, torch.nan, 1.0, 1.0, 1.0]))
    assert all(param.grad is not None and param.grad.isfinite().all() for param in model.parameters())


READ: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "LinearUse": lambda x, p: x @ p,
    "BatchedProductUse": lambda x, p: (p @ x.t()).t(),
    "VectorProductUse": lambda x, p: (x @ p[0])[:, None],
    "BilinearUse": lambda x, p: F.bilinear(x, x, p.view(1, 4, 4)),
    "ConvolutionUse": lambda x, p: F.conv1d(x[:, None], p[:, None]),
    "EmbeddingUse": lambda x, p: p[torch.arange(5) % 4],
    "EmbeddingUse, by number": lambda x, p: F.embedding(torch.arange(5) % 4, p),
    "EmbeddingUse, selected": lambda x, p: p.index_select(0, torch.arange(5) % 4),
    "BagUse": lambda x, p: F.embedding_bag(torch.arange(10) % 4, p, torch.arange(0, 10, 2)),
    "LayerNormUse": lambda x, p: F.layer_norm(x, (4,), p[0]),
    "GroupNormUse": lambda x, p: F.group_norm(x[:, :, None], 2, p[0]),
    "FixedNormUse": lambda x, p: F.batch_norm(x, torch.zeros(4).double(), torch.ones(4).double(), p[0]),
    "PReLUUse": lambda x, p: F.prelu(x, p[0]),
    "BroadcastUse": lambda x, p: x + p[0],
    "BroadcastUse, minus": lambda x, p: p[0] - x,
    "BroadcastUse, times": lambda x, p: x * p[0],
    "BroadcastUse, over": lambda x, p: x / p[0],
    "BroadcastUse, both": lambda x, p: torch.addcmul(x, x, p[0]),
    "BroadcastUse, either": lambda x, p: torch.where(x > 0, x, p[0]),
    "BroadcastUse, expanded": lambda x, p: p[0].expand(5, 4),
    "RepeatUse": lambda x, p: p[0].repeat(5, 1) * x,
    "NodeUse": lambda x, p: torch.hypot(x, p[0]),
}


@pytest.mark.filterwarnings("error:no per-sample rule")
@pytest.mark.parametrize("name", READ)
def test_every_kind_of_node_is_read_by_its_rule(name: str) -> None:
    """Others would give the same numbers, and take longer."""
    torch.manual_seed(0)
    model = nn.ParameterList([nn.Parameter(torch.randn(4, 4).double())])
    losses = squares(READ[name](torch.randn(5, 4).double(), model[0]))
    (use,) = uses_of(losses, model)
    assert type(use).__name__ == name.split(",")[0]
    assert error(PerSampleClipper(model, 1.0), model, losses) < 1e-12


VIEWS: dict[str, Callable[[Tensor], Tensor]] = {
    "itself": lambda p: p,
    "a copy": lambda p: p.clone(),
    "the transpose": lambda p: p.t(),
    "the transpose, in three ways": lambda p: p.transpose(-1, 0).permute(-1, 0).mT,
    "rows": lambda p: p[1:3],
    "all rows": lambda p: p[0:4, 0:4],
    "a part": lambda p: p.split(2)[1],
    "a part of two sizes": lambda p: p.split([1, 3])[1],
    "an axis more": lambda p: p[:, None].squeeze(1),
    "an axis more, unnamed": lambda p: p[None].squeeze(),
    "an axis more, two named": lambda p: p[None, :, None].squeeze((0, 2)),
    "an axis of one, moved": lambda p: p[None].permute(1, 0, 2),
    "another shape": lambda p: p.view(2, 2, 4).reshape(4, 4),
    "rounded to another type": lambda p: p.float().double(),
}


@pytest.mark.filterwarnings("error:no per-sample rule")
@pytest.mark.parametrize("name", VIEWS)
def test_a_view_of_a_parameter_is_read_as_the_parameter(name: str) -> None:
    torch.manual_seed(0)
    model = nn.ParameterList([nn.Parameter(torch.randn(4, 4).double())])
    part = VIEWS[name](model[0])
    by_entry = name.startswith("an")
    losses = squares(torch.randn(5, *part.shape).double() * part if by_entry else torch.randn(5, 4).double() @ part.t())
    (use,) = uses_of(losses, model)
    assert [slot.param is model[0] for slot in use.slots.values()] == [True]
    assert error(PerSampleClipper(model, 1.0), model, losses) < (1e-6 if "type" in name else 1e-12)


def test_a_layer_that_is_called_on_no_rows_as_well() -> None:
    torch.manual_seed(0)
    layer, x = nn.Linear(4, 3).double(), torch.randn(5, 4).double()
    clipper = PerSampleClipper(layer, 1.0)
    for _ in range(2):
        assert error(clipper, layer, squares(layer(x)) + layer(x[:0]).sum()) < 1e-12
    vector = nn.ParameterList([nn.Parameter(torch.randn(4).double())])
    norms = PerSampleClipper(vector, 1.0).norms(x.sum(1) + (x[:0] * vector[0]).sum())
    assert norms.dtype is torch.float64
    assert norms.tolist() == [0.0] * 5


def test_a_batch_without_samples() -> None:
    """It adds nothing, and says so in the same types."""
    layer = nn.Linear(4, 3).double()
    clipper = PerSampleClipper(layer, 1.0)
    stats = clipper.backward(squares(layer(torch.zeros(0, 4).double())))
    assert [tuple(value.shape) for value in stats] == [(0,), (0,), (), ()]
    assert [value.dtype for value in stats] == [torch.float64] * 3 + [torch.int64]
    assert (stats.clipped_fraction, stats.dropped) == (0.0, 0)
    assert [param.grad for param in layer.parameters()] == [None, None]
    assert clipper.norms(squares(layer(torch.zeros(0, 4).double()))).shape == (0,)


@pytest.mark.parametrize("options", [{"mode": "sum"}, {"mode": "mean"}, {"mode": "sum", "padding_idx": 1}])
def test_a_table_of_bags_that_is_a_matrix_as_well(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    table = nn.EmbeddingBag(6, 4, **options).double()
    clipper = PerSampleClipper(table, 1.0)
    for n in (3, 3, 5):
        bags = table(torch.randint(6, (4 * n,)), torch.arange(n) * 4)
        assert error(clipper, table, squares(bags) + squares(torch.randn(n, 4).double() @ table.weight.t())) < 1e-12


def test_gradients_fill_every_message_to_the_last_byte() -> None:
    whole, half, byte = (torch.empty(size, dtype=torch.uint8, device="meta") for size in (BUCKET, BUCKET // 2, 1))
    assert [len(bucket) for bucket in _buckets([whole, half, half, byte])] == [1, 2, 1]


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ({"static_graph": True}, r"DistributedDataParallel\(static_graph=True\)"),
        ({"mixed_precision": object()}, r"DistributedDataParallel\(mixed_precision=…\), which computes with copies"),
        ({"_join_config": SimpleNamespace(enable=True)}, r"DistributedDataParallel inside join\(\) \(call backward on"),
    ],
)
def test_options_that_reduce_by_themselves_are_refused(options: dict[str, Any], found: str) -> None:
    plain = {"static_graph": False, "mixed_precision": None, "_join_config": SimpleNamespace(enable=False)}
    _refuse_options(cast(DistributedDataParallel, SimpleNamespace(**plain)))
    with pytest.raises(ValueError, match=f"^model must reduce nothing by itself in a backward pass, got {found}"):
        _refuse_options(cast(DistributedDataParallel, SimpleNamespace(**(plain | options))))


def test_hooks_are_asked_for_once() -> None:
    watch = Watch()
    assert watch.due([])
    watch.looked()
    assert not watch.due([])
    torch.zeros(1, requires_grad=True).register_hook(lambda grad: None)
    assert watch.due([])
    watch.looked()
    assert not watch.due([])
