"""Gradients of any size: per-sample norms from 1e-30 to 1e30 in float32."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from clipbench.per_sample import NormalizedWeight, PerSampleClipper, total
from clipbench.per_sample.factors import factor_norms
from tests.per_sample.common import square_loss
from tests.per_sample.grid import FAMILIES
from tests.per_sample.zoo import CASES
from tests.reference.from_graph import flat_gradient_of, sample_gradients_of

ALL = {f"{family}-{name}": case for family, cases in FAMILIES.items() for name, case in cases.items()}


class Single(TorchFunctionMode):
    """The grid's cases, which are written for float64, in float32."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if kwargs.get("dtype") is torch.float64:
            kwargs["dtype"] = torch.float32
        if kwargs.get("dtype") is torch.complex128:
            kwargs["dtype"] = torch.complex64
        return (Tensor.float if func is Tensor.double else func)(*args, **kwargs)


def scales(n: int, low: float = -30.0, high: float = 30.0) -> Tensor:
    """A factor for each sample, 10**low … 10**high."""
    return 10.0 ** (torch.rand(n) * (high - low) + low)


def off(model: nn.Module, losses: Tensor, factors: Tensor, scale: float = 1.0, **options: Any) -> tuple[float, float]:
    """Relative errors, sample by sample: of norms, and of Σ_k g_k/‖g_k‖, in which all samples count alike.

    The twin differentiates every loss alone, without its factor, which it multiplies in float64.
    """
    rows = sample_gradients_of(losses, model)
    size = rows.norm(dim=1)
    wanted = size * factors.double()
    clear = size > 1e-3 * size.max()  # else what is left is rounding, of which there is no truth
    clipper = PerSampleClipper(model, 1.0, NormalizedWeight(), **options)
    model.zero_grad()
    stats = clipper.backward(losses * factors * scale, scale=scale)
    assert stats.dropped == 0
    off_norms = ((stats.norms.double() - wanted).abs() / wanted.clamp(min=1e-300))[clear]
    units = rows / size.clamp(min=1e-40)[:, None]
    summed = torch.where(clear[:, None], units, 0.0).mean(0)
    if not bool(clear.all()):
        return float(off_norms.max()), 0.0
    return float(off_norms.max()), float((flat_gradient_of(model) / scale - summed).norm())


@pytest.mark.filterwarnings("ignore:no per-sample rule")
@pytest.mark.parametrize("part", range(4))
def test_the_grid_at_all_sizes_of_gradients(part: int) -> None:
    """n = 2 … 9; every other case, the rest in the slow test below."""
    assert wrong(list(ALL)[2 * part :: 8]) == []


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:no per-sample rule")
@pytest.mark.parametrize("part", range(4))
def test_the_rest_of_the_grid(part: int) -> None:
    assert wrong(list(ALL)[2 * part + 1 :: 8]) == []


UNSTEADY = {"norms-GroupNorm, no parameters"}
"""What autograd itself gets no nearer than a percent at such sizes in float32: it normalises groups of two."""


def wrong(names: list[str]) -> list[str]:
    """The cases with a norm, or a sum of unit gradients, that is off."""
    found = []
    for name in names:
        number = list(ALL).index(name)
        n = 2 + number % 8
        torch.manual_seed(number)
        with Single():
            model, losses = ALL[name](n)
            values = losses()
        errors = off(model, values, scales(n))
        if not max(errors) < (1e-2 if name in UNSTEADY else 2e-5):
            found.append(f"{name}, n = {n}: {errors}")
    return found


@pytest.mark.parametrize("factor", [1e20, 1e30, 1e-20, 1e-30])
@pytest.mark.parametrize("verify", [False, True])
def test_one_sample_far_off_by_hand(factor: float, verify: bool) -> None:
    """Norms √6 and √6 · factor; clipped at one, each adds a unit vector (or its own gradient where it is small)."""
    layer = nn.Linear(3, 2, bias=False)
    losses = layer(torch.ones(2, 3)).sum(1) * torch.tensor([1.0, factor])
    stats = PerSampleClipper(layer, 1.0, verify=verify).backward(losses)
    torch.testing.assert_close(stats.norms.double(), math.sqrt(6) * torch.tensor([1.0, factor]).double())
    assert stats.dropped == 0
    small = factor if factor < 1 else 1 / math.sqrt(6)
    assert layer.weight.grad is not None
    torch.testing.assert_close(layer.weight.grad, torch.full((2, 3), (1 / math.sqrt(6) + small) / 2))


@pytest.mark.parametrize("blind", [False, True])
@pytest.mark.parametrize("factor", [1e20, 1e30, 1e-20, 1e-30, 1.0])
@pytest.mark.parametrize("name", [name for name in CASES if name not in ("checkpointed",)])
def test_all_layers_where_values_are_not_read(
    name: str, factor: float, blind: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on an accelerator, where nothing is asked for again; and on a CPU."""
    torch.manual_seed(0)
    build, inputs = CASES[name]
    model, x = build(), inputs()
    values = square_loss(model, x)
    if blind:
        monkeypatch.setattr(total, "readable", lambda tensor: False)
    factors = torch.tensor([1.0, factor, 1 / factor, 1.0, factor])
    assert max(off(model, values, factors)) < 2e-5


@pytest.mark.parametrize("scale", [2.0**16, 2.0**-10])
def test_a_scaler_beside_far_off_samples(scale: float) -> None:
    torch.manual_seed(0)
    build, inputs = CASES["conv2d"]
    model = build()
    assert max(off(model, square_loss(model, inputs()), scales(5, -25, 25), scale)) < 2e-5


def test_accumulated_parts_far_off() -> None:
    torch.manual_seed(0)
    build, inputs = CASES["encoder"]
    model, x = build(), inputs()
    rows = sample_gradients_of(square_loss(model, x), model)
    factors = torch.tensor([1e25, 1.0, 1e-25, 1e20, 1e-20])
    clipper = PerSampleClipper(model, 1.0, NormalizedWeight())
    for part in (slice(0, 2), slice(2, 5)):
        clipper.backward(square_loss(model, x[part]) * factors[part], offset=part.start, total=5)
    wanted = (rows / rows.norm(dim=1, keepdim=True)).mean(0)
    assert (flat_gradient_of(model) - wanted).norm() < 2e-5


@pytest.mark.parametrize("name", [name for name in CASES if name != "checkpointed"])
def test_float64_has_ends_too(name: str) -> None:
    torch.manual_seed(0)
    build, inputs = CASES[name]
    model, x = build().double(), inputs()
    values = square_loss(model, x.double() if x.is_floating_point() else x)
    factors = torch.tensor([1.0, 1e200, 1e-200, 1e160, 1e-170], dtype=torch.float64)
    assert max(off(model, values, factors)) < 1e-9


def test_a_huge_factor_beside_a_tiny_one() -> None:
    """Inputs of 1e20 and gradients of 1e-22 at the output, as the other way round: only their product is ordinary."""
    for positions in (1, 2, 40):
        torch.manual_seed(0)
        layer = nn.Linear(12, 12)
        x, d = torch.randn(3, positions, 12), torch.randn(3, positions, 12)
        up = torch.tensor([1e20, 1e-22, 1.0])[:, None, None]
        losses = (layer(x * up) * (d / up / 100)).sum((1, 2))
        rows = torch.stack([torch.cat([(d[k].t().double() / up[k] / 100 @ (x[k] * up[k]).double()).flatten(),
                                       d[k].double().sum(0) / up[k, 0].double() / 100]) for k in range(3)])  # fmt: skip
        norms = PerSampleClipper(layer, 1.0).norms(losses)
        torch.testing.assert_close(norms.double(), rows.norm(dim=1), rtol=1e-5, atol=0.0)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("widths", [(12, 12), (12, 20)])
def test_factors_that_only_their_product_brings_back(widths: tuple[int, int], bias: bool) -> None:
    """The same in sums of gradients of one small length: a weight on the smaller side would make zero of it."""
    for positions in (1, 2, 40):
        torch.manual_seed(0)
        layer = nn.Linear(*widths, bias=bias)
        x, d = torch.randn(3, positions, widths[0]), torch.randn(3, positions, widths[1])
        for down, up in ((1e-22, 1e18), (1e-22, 1e22), (1e-22, 1e37), (1e18, 1e-18)):
            if up > 1e30 and (bias or positions > 2):
                continue  # all is the bias's; or no norm is in doubt, so that inputs get the weights
            small = torch.tensor([1.0, down, 1.0])[:, None, None]
            large = torch.tensor([1.0, up, 1.0])[:, None, None]
            losses = (layer(x * small) * (d * large)).sum((1, 2))
            wanted = torch.bmm((d * large).double().transpose(1, 2), (x * small).double())
            sums = (d * large).double().sum(1) if bias else torch.zeros(3, 1).double()
            norms = torch.hypot(wanted.flatten(1).norm(dim=1), sums.norm(dim=1))
            layer.zero_grad()
            stats = PerSampleClipper(layer, 1e-5).backward(losses)
            torch.testing.assert_close(stats.norms.double(), norms, rtol=1e-5, atol=0.0)
            mean = (wanted / norms[:, None, None]).mean(0)
            assert layer.weight.grad is not None
            assert (layer.weight.grad.double() / 1e-5 - mean).norm() < 2e-5


@pytest.mark.filterwarnings("error:no per-sample rule")
def test_a_row_that_unequal_samples_share_is_nobodys() -> None:
    """A table read by position, the same for all: the largest sample does not own it, however small the others."""
    for ratio in (1e3, 1e8, 1e14, 1e25):
        torch.manual_seed(0)
        table, layer = nn.Embedding(6, 4), nn.Linear(4, 3)
        model = nn.ModuleList([table, layer])
        x = torch.randn(4, 6, 4)
        for k in range(4):
            factors = torch.ones(4)
            factors[k] = ratio
            for each in (factors, 1 / factors):
                losses = square_loss(model[1], x + table(torch.arange(6)))
                assert max(off(model, losses, each)) < 2e-5, (ratio, k)


@pytest.mark.filterwarnings("ignore:no per-sample rule")
@pytest.mark.parametrize("ratio", [1e8, 1e12])
def test_a_row_that_unequal_samples_share_where_nothing_is_proven(ratio: float) -> None:
    """The first sample reads the last one's row by an index: only samples brought level show that."""
    torch.manual_seed(0)
    model, index = nn.ModuleList([nn.Linear(4, 3), nn.Linear(4, 3)]), torch.tensor([3, 1, 2, 3])
    for big in (ratio, 1 / ratio):
        hidden = model[0](torch.randn(4, 4))
        hidden = hidden + torch.tensor([1.0, 0.0, 0.0, 0.0])[:, None] * hidden[index]
        out = hidden + model[1](torch.randn(4, 4))[torch.randperm(4)]
        losses = 0.5 * out.square().sum(1) + out.sum(1)
        assert max(off(model, losses, torch.tensor([1.0, 1.0, 1.0, big]))) < 2e-5


@pytest.mark.filterwarnings("ignore:no per-sample rule")
def test_a_small_sample_all_of_whose_rows_are_anothers() -> None:
    """Its size shows at no row that is known to be its own, but beside nobody else."""
    torch.manual_seed(0)
    model, index = nn.ModuleList([nn.Linear(4, 3), nn.Linear(4, 3)]), torch.tensor([3, 1, 2, 3])
    for small in (1e-8, 1e-12):
        hidden = model[0](torch.randn(4, 4))[index]
        mask = torch.tensor([0.0, 1.0, 1.0, 1.0])[:, None]
        out = hidden + mask * model[1](torch.randn(4, 4))[torch.tensor([0, 3, 2, 1])]
        losses = 0.5 * out.square().sum(1) + out.sum(1)
        assert max(off(model, losses, torch.tensor([small, 1.0, 1.0, 1.0]))) < 2e-5


def test_zero_gradients_cost_no_second_look(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sample whose loss is masked has the norm zero, exactly, and nothing is computed again for it."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 64), nn.Tanh(), nn.Linear(64, 64), nn.LayerNorm(64))
    taken: list[object] = []
    monkeypatch.setattr(total, "taking", lambda care: taken.append(care))
    mask = torch.tensor([1.0, 0.0, 1.0, 0.0])
    for x in (torch.randn(4, 6), torch.randn(4, 5, 6)):
        norms = PerSampleClipper(model, 1.0).norms(square_loss(model, x) * mask)
        assert ((norms == 0) == (mask == 0)).all()
    assert taken == []


def test_ordinary_norms_are_not_computed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(total, "taking", lambda care: pytest.fail("computed again"))
    for name, (build, inputs) in CASES.items():
        if name != "checkpointed":
            torch.manual_seed(0)
            model = build()
            PerSampleClipper(model, 1.0).backward(square_loss(model, inputs()))


@pytest.mark.parametrize("size", [1, 4])
def test_channels_of_zeros_leave_no_doubt(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Grouped convolutions behind a ReLU: a group without a gradient says nothing of the others."""
    monkeypatch.setattr(total, "taking", lambda care: pytest.fail("computed again"))
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 24, 1), nn.ReLU(), nn.Conv2d(24, 24, 3, padding=1, groups=24, bias=False))
    model.append(nn.Conv2d(24, 48, 3, padding=1, groups=8))
    with torch.no_grad():
        model[0].bias[::3] = -100.0
    losses = square_loss(model, torch.randn(4, 3, size, size))
    truth = sample_gradients_of(losses, model).norm(dim=1)
    norms = PerSampleClipper(model, 1.0).norms(losses)
    assert torch.allclose(norms.double(), truth.double(), rtol=1e-5)


@pytest.mark.parametrize("factor", [1e-15, 1e-22, 1e15])
def test_groups_of_any_size(factor: float) -> None:
    """All groups far off, and one of them: what a group may lose counts beside the rest."""
    torch.manual_seed(0)
    for groups in (slice(None), slice(0, 4)):
        model = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        x = torch.randn(3, 8, 1, 1)
        x[:, groups] *= factor
        losses = model(x).flatten(1) @ torch.ones(8).index_fill(0, torch.arange(8)[groups], factor)
        truth = sample_gradients_of(losses, model).double().norm(dim=1)
        norms = PerSampleClipper(model, 1.0).norms(losses)
        assert torch.allclose(norms.double(), truth, rtol=1e-5, atol=0)


def test_only_what_is_in_doubt_is_computed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Positions that cancel in one layer of three: the other two keep their norms."""
    torch.manual_seed(0)
    first, second, last = nn.Linear(4, 400, bias=False), nn.Linear(400, 400, bias=False), nn.Linear(400, 2)
    model = nn.Sequential(first, second, last)
    again: list[int] = []
    sure = total._sure_norms
    monkeypatch.setattr(total, "_sure_norms", lambda part, *rest: again.append(1) or sure(part, *rest))
    x = torch.randn(3, 2, 4)
    hidden = first(x)
    signs = torch.tensor([1.0, -1.0 + 1e-5])[:, None]
    same = hidden[:, :1].detach().expand(3, 2, 400)
    losses = (second(same) * signs).sum((1, 2)) + last(hidden).square().sum((1, 2))
    rows = sample_gradients_of(losses, model)
    norms = PerSampleClipper(model, 1.0).norms(losses)
    assert torch.allclose(norms.double(), rows.double().norm(dim=1), rtol=1e-4)
    assert again == [1]


def test_groups_that_fall_out_of_the_dtype_are_in_doubt() -> None:
    """One position: a sample of which every group is too small is marked, one with an ordinary group is not."""
    left = torch.full((4, 1, 3), 1e-25)
    left[0] = 1.0
    norms = factor_norms(left, left.clone(), groups=2)
    assert norms.tolist() == pytest.approx([3.0, math.inf])


@pytest.mark.parametrize("options", [{"padding": 1}, {"stride": 2}, {"stride": 2, "padding": 1}, {"groups": 2}])
@pytest.mark.parametrize("kind", [nn.Conv2d, nn.ConvTranspose2d])
def test_pointwise_convolutions(kind: type[nn.Module], options: dict[str, int]) -> None:
    torch.manual_seed(0)
    model = kind(4, 6, 1, **options)
    losses = square_loss(model, torch.randn(3, 4, 7, 6))
    truth = sample_gradients_of(losses, model).double().norm(dim=1)
    norms = PerSampleClipper(model, 1.0).norms(losses)
    assert torch.allclose(norms.double(), truth, rtol=1e-5)
