"""Which sample a row belongs to: rows time first, packed, routed, masked, cut, of any number per sample."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from clipbench.per_sample import PerSampleClipper
from tests.per_sample.common import errors
from tests.per_sample.ragged import MODELS, WIDTH, Experts, Packed, Segmented, TimeFirst, error, squares

BOUND = {torch.float64: 1e-12, torch.float32: 2e-5}
SIZES = (2, 3, 4, 5, 9)


fast = pytest.mark.filterwarnings("error:no per-sample rule")
"""The slow path is not taken."""


@fast
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", MODELS)
def test_other_layouts_match_the_loop_on_changing_batches(name: str, dtype: torch.dtype) -> None:
    """One clipper sees all batch sizes, and every size twice: what it kept of one must not be used for another."""
    torch.manual_seed(0)
    model = MODELS[name]().to(dtype)
    clipper = PerSampleClipper(model, 1.0)
    for n in (*SIZES, *SIZES, 1):
        assert error(clipper, model, model(model.batch(n))) < BOUND[dtype], n


@fast
@pytest.mark.slow
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN, nn.TransformerEncoder])
@pytest.mark.parametrize("steps", [2, 3, 4, 8])
def test_time_first_for_many_lengths(kind: type[nn.Module], steps: int) -> None:
    for take in ("last", "middle", "all", "mean"):
        for dtype in BOUND:
            torch.manual_seed(0)
            model = TimeFirst(kind, take, steps).to(dtype)
            clipper = PerSampleClipper(model, 1.0)
            for n in SIZES:
                assert error(clipper, model, model(model.batch(n))) < BOUND[dtype], (take, n)


@fast
def test_the_last_step_of_a_layer_by_hand() -> None:
    """`lin(x)[-1]` with x (5, 2, 4), time first, then n = 8 with the same clipper, then (batch, time)."""
    torch.manual_seed(0)
    model = nn.Linear(4, 3).double()
    clipper = PerSampleClipper(model, 1.0)
    for n in (2, 8, 2):
        x = torch.randn(5, n, 4).double()
        assert error(clipper, model, model(x)[-1].square().sum(1)) < 1e-12
        assert error(clipper, model, model(x.transpose(0, 1))[:, -1].square().sum(1)) < 1e-12


@fast
def test_uneven_rows_by_hand() -> None:
    """Weight 1, rows of ones, one loss a row: a sample's norm is its number of rows."""
    model = nn.Linear(1, 1, bias=False)
    nn.init.ones_(model.weight)
    clipper = PerSampleClipper(model, 100.0)
    for owners in ([0, 0, 1, 1], [0, 0, 0, 1], [0, 1, 1, 1, 2, 2, 3, 3], [3, 1, 1, 2, 2, 1], [0, 0, 0, 0]):
        n = max(max(owners) + 1, 2)
        losses = torch.zeros(n).index_add(0, torch.tensor(owners), model(torch.ones(len(owners), 1))[:, 0])
        assert clipper.backward(losses).norms.tolist() == [owners.count(k) for k in range(n)]


class Positions(nn.Module):
    """A table looked up by position, once for all samples, added to tokens; the loss at some of the positions."""

    def __init__(self, at: slice) -> None:
        super().__init__()
        self.table, self.head, self.at = nn.Embedding(8, 4), nn.Linear(4, 3), at

    def forward(self, x: Tensor) -> Tensor:
        return squares(self.head(x + self.table(torch.arange(x.shape[1])))[:, self.at])


@pytest.mark.filterwarnings("ignore:no per-sample rule")
@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("at", [slice(0, 1), slice(2, 3), slice(5, 6), slice(0, 6)])
def test_a_table_looked_up_by_position(at: slice, n: int) -> None:
    torch.manual_seed(0)
    model = Positions(at).double()
    clipper = PerSampleClipper(model, 1.0)
    for _ in range(2):
        assert error(clipper, model, model(torch.randn(n, 6, 4).double())) < 1e-12


@pytest.mark.filterwarnings("ignore:no per-sample rule")
@pytest.mark.parametrize("n", SIZES)
def test_samples_mixed_in_the_middle(n: int) -> None:
    """Mixup of hidden states by reversing the batch: only the middle sample's rows are its own."""
    torch.manual_seed(0)
    body, head = nn.Linear(WIDTH, WIDTH).double(), nn.Linear(WIDTH, 3).double()
    model = nn.ModuleList([body, head])
    clipper = PerSampleClipper(model, 1.0)
    for share in (0.3, 0.0, 1.0, 0.5):  # at 0 and 1 nothing is mixed
        hidden = body(torch.randn(n, 4, WIDTH).double()).tanh()
        hidden = (1 - share) * hidden + share * hidden.flip(0)
        assert error(clipper, model, squares(head(hidden))) < 1e-12


@pytest.mark.filterwarnings("ignore:no per-sample rule")
def test_a_gate_that_starts_at_zero_hides_nothing() -> None:
    """At the first step no sample reaches another, for the gate is zero; later each does."""
    torch.manual_seed(0)
    body, head = nn.Linear(WIDTH, WIDTH).double(), nn.Linear(WIDTH, 3).double()
    model = nn.ModuleList([body, head])
    clipper = PerSampleClipper(model, 1.0)
    for gate in (0.0, 0.0, 0.5, torch.tensor(0.0), torch.tensor(0.5), 0.0):
        hidden = body(torch.randn(4, 3, WIDTH).double()).tanh()
        assert error(clipper, model, squares(head(hidden + gate * hidden.mean(0)))) < 1e-12


@fast
def test_rows_that_got_no_gradient_at_first_are_known_later() -> None:
    """Layers and rows switched off by data at the first steps: time first, so that a guess by rows would be wrong."""
    torch.manual_seed(0)
    first, second = nn.Linear(WIDTH, WIDTH).double(), nn.Linear(WIDTH, WIDTH).double()
    model = nn.ModuleList([first, second])
    clipper = PerSampleClipper(model, 1.0)
    for on in ([0, 0, 0], [0, 0, 0], [1, 0, 0], [0, 0, 1], [1, 1, 1]):
        mask = torch.tensor(on).double()[:, None, None]
        x = torch.randn(3, 2, WIDTH).double()
        out = first(x) + (second(x) * mask).relu()
        assert error(clipper, model, out.square().sum((0, 2))) < 1e-12


@fast
def test_positions_that_move_by_a_constant_are_told_apart() -> None:
    """The same operations with another constant are another graph."""
    torch.manual_seed(0)
    model = nn.Linear(WIDTH, 3).double()
    clipper = PerSampleClipper(model, 1.0)
    x = torch.randn(4, 4, WIDTH).double()

    def rows(shift: int = 0) -> Tensor:
        return squares(model(x).roll(shift, 0).flatten(0, 1)).view(4, 4)

    for shift in (0, 1, 2, 0, 1):
        assert error(clipper, model, rows(shift)[shift]) < 1e-12
        zeros = [torch.zeros(shift).double(), torch.zeros(3 - shift).double()]
        assert error(clipper, model, torch.cat([zeros[0], rows()[0], zeros[1]])) < 1e-12
        padded = torch.zeros(7).double()
        padded[shift : shift + 4] = rows()[:, 0]
        assert error(clipper, model, padded) < 1e-12


class Shifted(torch.autograd.Function):
    """Rolls by a number that only the function's own attribute knows."""

    @staticmethod
    def forward(ctx, x: Tensor, by: int, wrapped: bool) -> Tensor:  # type: ignore[no-untyped-def]
        ctx.by = {"by": by} if wrapped else by
        return x.roll(by, 0)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[no-untyped-def]
        return grad.roll(-(ctx.by if isinstance(ctx.by, int) else ctx.by["by"]), 0), None, None


@fast
@pytest.mark.parametrize("wrapped", [False, True])
def test_functions_of_the_users_own(wrapped: bool) -> None:
    torch.manual_seed(0)
    model = nn.Linear(WIDTH, 3).double()
    clipper = PerSampleClipper(model, 1.0)
    for by in (0, 1, 2, 1, 0):
        x = torch.randn(4, WIDTH).double()
        assert error(clipper, model, squares(Shifted.apply(model(x), by, wrapped))) < 1e-12


@fast
@pytest.mark.parametrize("build", [lambda: Segmented(40.0), lambda: Packed(nn.GRU), Experts])
def test_lost_samples_of_ragged_batches(build: Callable[[], nn.Module]) -> None:
    """A row that is not finite has no owner that could be read: its sample is dropped, or the whole batch."""
    torch.manual_seed(0)
    model = build().double()
    clipper = PerSampleClipper(model, float("inf"))
    losses = model(model.batch(4))
    scale = torch.ones(4).double()
    scale[1] = torch.nan
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        stats = clipper.backward(losses * scale)
    assert stats.dropped >= 1
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


@fast
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["segments", "GRU, packed, states", "sorted", "padded, time first"])
def test_half_precision(name: str, dtype: torch.dtype) -> None:
    """Rows are exact multiples there too: no slow path, norms as good as the precision."""
    torch.manual_seed(0)
    model = MODELS[name]()
    clipper = PerSampleClipper(model, 1.0)
    for n in (4, 5):
        batch = model.batch(n)
        with torch.autocast("cpu", dtype=dtype):
            losses = model(batch)
        assert error(clipper, model, losses.float() * 256.0) < 0.03  # away from what float16 cannot hold


@fast
@pytest.mark.parametrize("name", ["attention, time first", "lstm", "gru"])
def test_several_rows_of_a_batch_axis_belong_to_one_sample(name: str) -> None:
    """A layer's batch holds three sequences of every sample."""
    from tests.per_sample.zoo import CASES

    torch.manual_seed(0)
    build, inputs = CASES[name]
    model = build().double()
    clipper = PerSampleClipper(model, 1.0)
    for _ in range(2):
        out = model(inputs().double().repeat(3, 1, 1)).flatten(1)
        assert error(clipper, model, squares(out.view(3, 5, -1).transpose(0, 1))) < 1e-12
        out = model(inputs().float().double().repeat(3, 1, 1)).flatten(1)
        assert error(clipper, model, squares(out.view(5, 3, -1))) < 1e-12


@fast
def test_a_fused_lstm_with_several_sequences_a_sample() -> None:
    torch.manual_seed(0)
    model = nn.LSTM(WIDTH, 4, bidirectional=True)
    clipper = PerSampleClipper(model, 1.0)
    for shape in ((5, 3), (5, 3), (3, 5)):
        out, (state, _) = model(torch.randn(7, 15, WIDTH))
        rows = squares(out.transpose(0, 1)) + squares(state.transpose(0, 1))
        losses = rows.view(shape).sum(1) if shape == (5, 3) else rows.view(shape).sum(0)
        assert error(clipper, model, losses) < 2e-5


@fast
def test_the_twin_agrees_where_samples_stand_alone() -> None:
    """The comparison above is with the batch's own graph; here with batches of one."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 3)).double()

    def loss(model: nn.Module, x: Tensor) -> Tensor:
        return squares(model(x.transpose(0, 1))[-1])

    assert max(errors(net, torch.randn(5, 7, 6).double(), loss, steps=2)) < 1e-12
