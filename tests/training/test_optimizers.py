"""Update rules against their formulas in plain float64, Muon's routing, and resuming."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from clipbench.data import Spec
from clipbench.models import MLP, Airbench, AlexNet, Transformer
from clipbench.training import optimizers
from tests.composed import composed

Build = Callable[..., optimizers.Optimizer]
ALL: dict[str, Build] = {name: getattr(optimizers, name) for name in ("sgd", "adam", "adamw", "muon", "matrix_sgd")}
SPEC = Spec("vector", (4,), 3, "heavy_tailed")
SHAPES = ((5, 4), (5,), (3, 5), (3,))  # of small()'s parameters


def _gradients(seed: int) -> list[Tensor]:
    draws = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=draws) for shape in SHAPES]


GRADIENTS = [_gradients(step) for step in range(4)]


def small() -> MLP:
    torch.manual_seed(0)
    return MLP(SPEC, widths=[5])


def run(build: Build, model: nn.Module, steps: int = 4, **options: Any) -> list[Tensor]:
    """The parameters after `steps` steps with GRADIENTS."""
    optimizer = build(model, **options)
    for gradients in GRADIENTS[:steps]:
        for parameter, gradient in zip(model.parameters(), gradients, strict=True):
            parameter.grad = gradient.clone()
        optimizer.step()
        optimizer.zero_grad()
    return [parameter.detach().clone() for parameter in model.parameters()]


def naive_sgd(start: Tensor, gradients: list[Tensor], lr: float, m: float, nesterov: bool, decay: float) -> Tensor:
    theta, velocity = start.double(), torch.zeros_like(start, dtype=torch.float64)
    for gradient in gradients:
        g = gradient.double() + decay * theta
        velocity = m * velocity + g
        theta = theta - lr * (g + m * velocity if nesterov else velocity)
    return theta


def naive_adam(
    start: Tensor,
    gradients: list[Tensor],
    lr: float,
    betas: tuple[float, float],
    eps: float,
    decay: float,
    decoupled: bool,
) -> Tensor:
    theta, first, second = start.double(), 0.0, 0.0
    for t, gradient in enumerate(gradients, start=1):
        g = gradient.double() + (0.0 if decoupled else decay) * theta
        theta = theta * (1 - lr * decay) if decoupled else theta
        first = betas[0] * first + (1 - betas[0]) * g
        second = betas[1] * second + (1 - betas[1]) * g**2
        theta = theta - lr * (first / (1 - betas[0] ** t)) / ((second / (1 - betas[1] ** t)).sqrt() + eps)
    return theta


def compare(
    after: list[Tensor], expected: Callable[[Tensor, list[Tensor]], Tensor], which: slice = slice(None)
) -> None:
    starts = list(small().parameters())
    for i in range(len(after))[which]:
        want = expected(starts[i].detach(), [gradients[i] for gradients in GRADIENTS])
        torch.testing.assert_close(after[i].double(), want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("momentum", "nesterov", "decay"), [(0.0, False, 0.0), (0.9, False, 0.1), (0.9, True, 0.1)])
def test_sgd(momentum: float, nesterov: bool, decay: float) -> None:
    after = run(optimizers.sgd, small(), lr=0.1, momentum=momentum, nesterov=nesterov, weight_decay=decay)
    compare(after, lambda start, g: naive_sgd(start, g, 0.1, momentum, nesterov, decay))


def test_the_comparison_notices_a_missing_nesterov() -> None:
    after = run(optimizers.sgd, small(), lr=0.1, momentum=0.9, nesterov=False)
    with pytest.raises(AssertionError):
        compare(after, lambda start, g: naive_sgd(start, g, 0.1, 0.9, True, 0.0))


@pytest.mark.parametrize(("build", "decoupled"), [(optimizers.adam, False), (optimizers.adamw, True)])
def test_adam_and_adamw(build: Build, decoupled: bool) -> None:
    after = run(build, small(), lr=0.1, betas=[0.8, 0.95], eps=1e-3, weight_decay=0.2)
    compare(after, lambda start, g: naive_adam(start, g, 0.1, (0.8, 0.95), 1e-3, 0.2, decoupled))


def test_matrix_sgd_steps_hidden_matrices_and_leaves_the_rest_to_adam() -> None:
    after = run(optimizers.matrix_sgd, small(), lr=0.1, weight_decay=0.2, adam_lr=0.01)
    compare(after, lambda start, g: naive_sgd(start, g, 0.1, 0.9, False, 0.2), slice(0, 1))
    compare(after, lambda start, g: naive_adam(start, g, 0.01, (0.9, 0.95), 1e-8, 0.0, False), slice(1, None))


def orthogonal_part(momentum: Tensor) -> Tensor:
    """Five quintic Newton–Schulz iterations on momentum/‖momentum‖_F (Jordan et al. 2024), in float64."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = momentum / momentum.norm()
    for _ in range(5):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x


def naive_muon(start: Tensor, gradients: list[Tensor], lr: float, m: float, decay: float) -> Tensor:
    theta, velocity = start.double().flatten(1), 0.0
    for gradient in gradients:
        g = gradient.double().flatten(1)
        velocity = m * velocity + (1 - m) * g
        step = orthogonal_part(m * velocity + (1 - m) * g)
        theta = theta * (1 - lr * decay) - lr * max(1.0, len(theta) / theta.shape[1]) ** 0.5 * step
    return theta.view_as(start)


def test_muon_on_a_matrix() -> None:
    start = small().features[0].weight.detach()
    after = run(optimizers.muon, small(), lr=0.1, momentum=0.9, weight_decay=0.2)[0]
    want = naive_muon(start, [gradients[0] for gradients in GRADIENTS], 0.1, 0.9, 0.2)
    torch.testing.assert_close(after.double(), want, rtol=0, atol=5e-3)  # torch's iterations are bfloat16
    assert float((want - start).abs().max()) > 0.2


def naive_muon_of_the_small_gpt(start: Tensor, gradients: list[Tensor], lr: float, decay: float) -> Tensor:
    """Paper 2, small GPT: momentum as an average of 0.9, no Nesterov, updates of 0.2 √max(n, m)."""
    theta, velocity = start.double(), 0.0
    for gradient in gradients:
        velocity = 0.9 * velocity + 0.1 * gradient.double()
        theta = theta * (1 - lr * decay) - lr * 0.2 * max(theta.shape) ** 0.5 * orthogonal_part(velocity)
    return theta


def preset(name: str) -> dict[str, Any]:
    """The options of conf/optimizer/<name>.yaml."""
    node = composed(f"optimizer={name}")["optimizer"]
    return {key: value for key, value in node.items() if key not in ("name", "_target_")}


def test_the_small_gpts_muon_is_paper_twos_in_float32() -> None:
    options = preset("muon_small_gpt") | {"lr": 0.1}
    assert options["weight_decay"] == 0.1
    start = small().features[0].weight.detach()
    after = run(optimizers.muon, small(), **options)[0]
    want = naive_muon_of_the_small_gpt(start, [gradients[0] for gradients in GRADIENTS], 0.1, 0.1)
    torch.testing.assert_close(after.double(), want, rtol=0, atol=2e-5)
    in_bfloat16 = run(optimizers.muon, small(), **options | {"products": "bfloat16"})[0]
    assert float((in_bfloat16.double() - want).abs().max()) > 1e-4
    others = run(optimizers.muon, small(), **options)
    compare(others, lambda s, g: naive_adam(s, g, 0.1, (0.9, 0.95), 1e-8, 0.0, False), slice(1, None))


def test_float32_muon_has_torchs_other_options_too() -> None:
    """Nesterov and the author's rate, where the products differ in rounding only."""
    start = small().features[0].weight.detach()
    options = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.2, "products": "float32"}
    after = run(optimizers.muon, small(), **options)[0]
    want = naive_muon(start, [gradients[0] for gradients in GRADIENTS], 0.1, 0.9, 0.2)
    torch.testing.assert_close(after.double(), want, rtol=0, atol=2e-5)


def test_gpt2s_muon_is_torchs_with_its_defaults() -> None:
    optimizer = optimizers.muon(small(), **preset("muon_gpt2"))
    theirs = torch.optim.Muon([nn.Parameter(torch.ones(2, 2))], momentum=0.9, weight_decay=0.0)
    ours, adam = optimizer.param_groups
    known = {key: value for key, value in theirs.param_groups[0].items() if key != "params"}
    assert {key: ours[key] for key in known} | {"adjust_lr_fn": None} == known
    assert ours["adjust_lr_fn"] == "original"  # what torch takes for None
    assert tuple(adam["betas"]) == (0.9, 0.99)
    assert adam["weight_decay"] == 0.0


def test_paper_twos_sgd_of_the_small_gpt_has_coupled_decay() -> None:
    options = preset("matrix_sgd") | {"lr": 0.1}
    after = run(optimizers.matrix_sgd, small(), **options)
    compare(after, lambda start, g: naive_sgd(start, g, 0.1, 0.9, False, 0.1), slice(0, 1))


def test_airbenchs_optimizer_is_paper_twos() -> None:
    model = Airbench(Spec("image", (3, 32, 32), 10, "cifar10"))
    options = preset("airbench")
    filters, whitening, biases, head = optimizers.airbench(model, **options).param_groups
    assert [tuple(p.shape) for p in filters["params"]] == [
        (64, 24, 3, 3), (64, 64, 3, 3), (256, 64, 3, 3), (256, 256, 3, 3), (256, 256, 3, 3), (256, 256, 3, 3),
    ]  # fmt: skip
    assert (filters["lr"], filters["momentum"], filters["weight_decay"]) == (0.24, 0.6, 0.0)
    assert [tuple(p.shape) for p in whitening["params"]] == [(24,)]
    assert sorted(len(p) for p in biases["params"]) == [64] * 2 + [256] * 4
    assert [tuple(p.shape) for p in head["params"]] == [(10, 256)]
    for group, rate in ((whitening, 0.053), (biases, 0.053), (head, 0.67)):
        assert (group["lr"], group["momentum"]) == (rate, 0.85)
        assert group["weight_decay"] * rate == pytest.approx(2e-6 * 2000)
    assert all(group["nesterov"] for group in (filters, whitening, biases, head))
    assert (whitening["span"], filters["span"]) == (3 / 20, 1.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": 0.0}, "lr must be finite and > 0, got 0.0"),
        ({"bias_lr": -1.0}, "bias_lr must be finite and > 0, got -1.0"),
        ({"head_lr": math.inf}, "head_lr must be finite and > 0, got inf"),
        ({"rest_momentum": 1.0}, "rest_momentum must be in [0, 1), got 1.0"),
        ({"whitening_span": 0.0}, "whitening_span must be in (0, 1], got 0.0"),
    ],
)
def test_bad_options_of_airbench(options: dict[str, Any], message: str) -> None:
    model = Airbench(Spec("image", (3, 32, 32), 10, "cifar10"), widths=[4, 4, 4])
    with pytest.raises(ValueError, match="^" + re.escape(message)):
        optimizers.airbench(model, **{"lr": 0.1, **options})
    with pytest.raises(ValueError, match=r"^model must be airbench"):
        optimizers.airbench(small(), lr=0.1)


class Filters(nn.Module):
    """Filters and the same numbers as a matrix."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(6, 18, generator=torch.Generator().manual_seed(0)).view(shape))


def test_muon_takes_filters_as_matrices() -> None:
    filters, matrix = Filters((6, 2, 3, 3)), Filters((6, 18))
    before = filters.weight.detach().clone()
    steps = [(model, optimizers.muon(model, lr=0.1)) for model in (filters, matrix)]
    for seed in range(3):
        gradient = torch.randn(6, 18, generator=torch.Generator().manual_seed(seed))
        for model, optimizer in steps:
            model.weight.grad = gradient.view(model.weight.shape).clone()
            optimizer.step()
            optimizer.zero_grad()
            assert model.weight.grad is None
    assert torch.equal(filters.weight.view(6, 18), matrix.weight)
    assert not torch.equal(filters.weight, before)


def adam_shapes(optimizer: optimizers.Optimizer) -> list[tuple[int, ...]]:
    return [tuple(p.shape) for p in optimizer.param_groups[1]["params"]]


def test_muon_leaves_embeddings_head_and_vectors_to_adam() -> None:
    tokens = Spec("tokens", (16,), 65, "shakespeare_char")
    gpt = Transformer(tokens, layers=1, heads=2, width=8, tied_head=False)
    muon = optimizers.muon(gpt, lr=0.1)
    assert [tuple(p.shape) for p in muon.param_groups[0]["params"]] == [(8, 8)] * 4 + [(32, 8), (8, 32)]
    rest = adam_shapes(muon)
    assert rest[:2] == [(65, 8), (16, 8)]
    assert rest[-1] == (65, 8)
    assert all(len(shape) == 1 for shape in rest[2:-1])
    tied = Transformer(tokens, layers=1, heads=2, width=8, tied_head=True)
    assert adam_shapes(optimizers.muon(tied, lr=0.1)).count((65, 8)) == 1


def test_adam_on_names_what_adam_takes() -> None:
    assert adam_shapes(optimizers.muon(small(), lr=0.1, adam_on=["features.*"])) == [(5, 4), (5,), (3,)]
    assert adam_shapes(optimizers.muon(small(), lr=0.1, adam_on=[])) == [(5,), (3,)]
    with pytest.raises(ValueError, match=r"^adam_on must be patterns that leave a matrix"):
        optimizers.muon(small(), lr=0.1, adam_on=["*"])


def test_frozen_parameters_stay() -> None:
    for build in ALL.values():
        model = small()
        model.features[0].bias.requires_grad_(False)
        held = sum(p.numel() for group in build(model, lr=0.1).param_groups for p in group["params"])
        assert held == sum(p.numel() for p in model.parameters()) - 5


@pytest.mark.parametrize("name", ALL)
def test_a_resumed_optimizer_goes_on_bit_for_bit(name: str) -> None:
    build = ALL[name]
    spec = Spec("image", (3, 32, 32), 10, "cifar10")
    torch.manual_seed(0)
    model = AlexNet(spec)
    optimizer = build(model, lr=0.01)

    def step(model: nn.Module, optimizer: optimizers.Optimizer, seed: int) -> None:
        draws = torch.Generator().manual_seed(seed)
        for parameter in model.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=draws)
        optimizer.step()
        optimizer.zero_grad()

    step(model, optimizer, 0)
    state = copy.deepcopy({"model": model.state_dict(), "optimizer": optimizer.state_dict()})
    step(model, optimizer, 1)
    resumed = AlexNet(spec)
    fresh = build(resumed, lr=0.01)
    resumed.load_state_dict(state["model"])
    fresh.load_state_dict(state["optimizer"])
    step(resumed, fresh, 1)
    for one, other in zip(model.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("name", ALL)
def test_rates_in_param_groups_are_obeyed_after_loading_too(name: str) -> None:
    model = small()
    optimizer = ALL[name](model, lr=0.1)
    optimizer.load_state_dict(optimizer.state_dict())
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    before = [parameter.detach().clone() for parameter in model.parameters()]
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    assert all(torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))


def test_zero_grad_can_keep_the_tensors() -> None:
    model = Filters((6, 2, 3, 3))
    optimizer = optimizers.muon(model, lr=0.1)
    model.weight.grad = torch.ones_like(model.weight)
    optimizer.zero_grad(set_to_none=False)
    assert model.weight.grad is not None
    assert not model.weight.grad.any()


BAD: list[tuple[dict[str, Any], str, list[str]]] = [
    ({"lr": 0.0}, "lr must be finite and > 0, got 0.0", list(ALL)),
    ({"lr": -0.1}, "lr must be finite and > 0, got -0.1", list(ALL)),
    ({"lr": math.nan}, "lr must be finite and > 0, got nan", list(ALL)),
    ({"lr": math.inf}, "lr must be finite and > 0, got inf", list(ALL)),
    ({"weight_decay": -1.0}, "weight_decay must be finite and >= 0, got -1.0", list(ALL)),
    ({"momentum": 1.0}, "momentum must be in [0, 1), got 1.0", ["sgd", "muon", "matrix_sgd"]),
    ({"momentum": -0.1}, "momentum must be in [0, 1), got -0.1", ["sgd", "muon", "matrix_sgd"]),
    ({"momentum": 0.0, "nesterov": True}, "nesterov must be false where", ["sgd", "muon", "matrix_sgd"]),
    ({"betas": [0.9, 1.0]}, "betas must be two numbers in [0, 1), got [0.9, 1.0]", ["adam", "adamw"]),
    ({"betas": [0.9]}, "betas must be two numbers in [0, 1), got [0.9]", ["adam", "adamw"]),
    ({"eps": 0.0}, "eps must be finite and > 0, got 0.0", ["adam", "adamw"]),
    ({"adam_betas": [-0.1, 0.9]}, "adam_betas must be two numbers", ["muon", "matrix_sgd"]),
    ({"adam_lr": 0.0}, "adam_lr must be finite and > 0, got 0.0", ["muon", "matrix_sgd"]),
    ({"adam_eps": -1.0}, "adam_eps must be finite and > 0, got -1.0", ["muon", "matrix_sgd"]),
    ({"products": "float16"}, "products must be one of bfloat16, float32, got float16", ["muon"]),
    ({"adjust_lr": "none"}, "adjust_lr must be one of original, match_rms_adamw, got none", ["muon"]),
]  # fmt: skip


@pytest.mark.parametrize(("options", "message", "name"), [(o, m, n) for o, m, names in BAD for n in names])
def test_bad_options(options: dict[str, Any], message: str, name: str) -> None:
    with pytest.raises(ValueError, match="^" + re.escape(message)):
        ALL[name](small(), **{"lr": 0.1, **options})
