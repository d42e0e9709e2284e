"""Linear layers and bare parameters in products, sums and re-indexings; bilinear layers; shared and merged weights."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.per_sample.grid.base import STEPS, Case, Losses, bare, bowl, indexed, layer, options, stack


def _linear() -> dict[str, Case]:
    cases: dict[str, Case] = {}
    for bias in (True, False):
        for lead in ((), (STEPS,), (7, 6), (2, 3, 2)):
            for axis in range(len(lead) + 1):
                name = f"Linear on {2 + len(lead)} axes, samples on axis {axis}, {options(bias=bias)}"
                cases[name] = layer(lambda bias=bias: nn.Linear(4, 3, bias=bias), *lead, 4, axis=axis)
    for axis, what in ((0, "batch first"), (1, "time first")):
        for pick in (0, 3, -1):
            cases[f"Linear, step {pick}, {what}"] = _step(pick, axis)
        cases[f"deep, {what}"] = layer(
            lambda: stack(nn.Linear(4, 7), nn.Tanh(), nn.Linear(7, 5), nn.ReLU(True), nn.Linear(5, 3)),
            STEPS, 4, axis=axis,
        )  # fmt: skip
        cases[f"wide, {what}"] = layer(
            lambda: stack(nn.Linear(4, 50), nn.Tanh(), nn.Linear(50, 60)), STEPS, 4, axis=axis
        )
    return cases


def _step(pick: int, axis: int) -> Case:
    def case(n: int) -> tuple[nn.Module, Losses]:
        model = nn.Linear(4, 3).double()
        x = torch.randn(n, STEPS, 4).double().movedim(0, axis)
        return model, lambda: model(x).select(1 - axis, pick).square().sum(1)

    return case


class Shared(nn.Module):
    """Two layers with one weight, or one layer called twice."""

    def __init__(self, tied: bool) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(5, 5), nn.Linear(5, 5)
        if tied:
            self.second.weight = self.first.weight
        else:
            self.second = self.first

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.tanh(self.first(x)))


class Language(nn.Module):
    """A table that is also the output layer, transposed or not."""

    def __init__(self, transposed: bool = False, bias: bool = False) -> None:
        super().__init__()
        self.table, self.hidden = nn.Embedding(9, 5), nn.Linear(5, 5)
        self.bias = nn.Parameter(torch.randn(9)) if bias else None
        self.transposed = transposed

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.tanh(self.hidden(self.table(x)))
        if self.transposed:
            return hidden @ self.table.weight.t()
        return F.linear(hidden, self.table.weight, self.bias)


class LowRank(nn.Module):
    """W + B A, merged, or beside one another; W frozen or not."""

    def __init__(self, merged: bool, frozen: bool) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 5)
        self.a, self.b = nn.Parameter(torch.randn(2, 6)), nn.Parameter(torch.randn(5, 2))
        self.merged = merged
        self.layer.weight.requires_grad_(not frozen)

    def forward(self, x: Tensor) -> Tensor:
        if self.merged:
            return F.linear(x, self.layer.weight + 0.5 * self.b @ self.a, self.layer.bias)
        return self.layer(x) + 0.5 * (x @ self.a.t()) @ self.b.t()


def _shared() -> dict[str, Case]:
    cases: dict[str, Case] = {}
    for axis, what in ((0, "batch first"), (1, "time first")):
        for tied in (True, False):
            word = "tied" if tied else "called twice"
            cases[f"{word}, {what}"] = layer(lambda tied=tied: Shared(tied), STEPS, 5, axis=axis)
        for transposed, bias in ((False, False), (False, True), (True, False)):
            name = f"tied table, {options(transposed=transposed, bias=bias)}, {what}"
            cases[name] = indexed(lambda t=transposed, b=bias: Language(t, b), 9, STEPS, axis=axis)
        for merged in (True, False):
            for frozen in (True, False):
                name = f"low rank, {options(merged=merged, frozen=frozen)}, {what}"
                cases[name] = layer(lambda m=merged, f=frozen: LowRank(m, f), STEPS, 6, axis=axis)
    cases["tied on vectors"] = layer(lambda: Shared(True), 5)
    return cases


def _products() -> dict[str, Case]:
    return {
        "x @ W": bare(lambda x, w: x @ w, [(4, 3)], STEPS, 4),
        "x @ W.t()": bare(lambda x, w: x @ w.t(), [(3, 4)], STEPS, 4),
        "W @ x": bare(lambda x, w: w @ x, [(3, 4)], 4, STEPS),
        "W @ x on vectors": bare(lambda x, w: (w @ x.t()).t(), [(3, 4)], 4),
        "einsum": bare(lambda x, w: torch.einsum("ntd,df->ntf", x, w), [(4, 3)], STEPS, 4),
        "einsum by heads": bare(lambda x, w: torch.einsum("nthd,hde->nthe", x, w), [(2, 4, 3)], STEPS, 2, 4),
        "einsum to heads": bare(lambda x, w: torch.einsum("ntd,dhe->nhte", x, w), [(4, 2, 3)], STEPS, 4),
        "time first, step taken": bare(lambda x, w: (x.transpose(0, 1) @ w)[-1], [(4, 3)], STEPS, 4),
        "bmm with an expanded matrix": bare(
            lambda x, w: torch.bmm(x, w.expand(x.shape[0], -1, -1)), [(4, 3)], STEPS, 4
        ),
        "baddbmm": bare(
            lambda x, b, w: torch.baddbmm(b, x, w.expand(x.shape[0], -1, -1)), [(1, 1, 3), (4, 3)], STEPS, 4
        ),
        "matrix by vector": bare(lambda x, w: x @ w, [(4,)], STEPS, 4),
        "outer product": bare(lambda x, w: x[:, :, None] * w, [(3,)], 4),
        "addmm with factors": bare(lambda x, b, w: torch.addmm(b, x, w, beta=0.5, alpha=2.0), [(3,), (4, 3)], 4),
        "addcmul": bare(lambda x, w, v: torch.addcmul(x, w, v), [(4,), (4,)], STEPS, 4),
        "lerp": bare(lambda x, w, v: torch.lerp(x, w, torch.sigmoid(v)), [(4,), (4,)], STEPS, 4),
        "halves of a square weight's transpose": bare(
            lambda x, w: torch.cat([x @ part for part in w.t().chunk(2)], 1), [(4, 4)], 2
        ),
        "halves of a weight": bare(
            lambda x, w: torch.cat([F.linear(x, part) * (i + 1) for i, part in enumerate(w.chunk(2))], -1),
            [(6, 4)], STEPS, 4,
        ),
        "columns of a weight": bare(lambda x, w: x @ w[:, :2] + x @ w[:, 2:], [(4, 4)], STEPS, 4),
        "overlapping rows": bare(lambda x, w: F.linear(x, w[:3]) + F.linear(x, w[1:4]), [(4, 4)], STEPS, 4),
        "b.view(2, 4).split(1)": bare(
            lambda x, b: x + b.view(2, 4).split(1)[0] * 2 + b.view(2, 4).split(1)[1], [(8,)], STEPS, 4
        ),
        "concatenated bias with zeros": bare(
            lambda x, w, q, v: F.linear(x, w, torch.cat([q, torch.zeros_like(v), v])), [(6, 4), (2,), (2,)], STEPS, 4
        ),
        "weight and weight": bare(lambda x, w, v: F.linear(x, torch.cat([w, v])), [(2, 4), (3, 4)], STEPS, 4),
        "power of a weight": bare(lambda x, w: F.linear(x, w @ w), [(4, 4)], STEPS, 4),
    }  # fmt: skip


def _broadcast() -> dict[str, Case]:
    return {
        "a scalar twice": bare(lambda x, b: x + b + x * b, [()], STEPS, 4),
        "a scalar in a division": bare(lambda x, b: x / b, [()], STEPS, 4),
        "a scalar in an exponential": bare(lambda x, b: x * b.exp(), [()], 4),
        "divided by": bare(lambda x, w: w / (1 + x * x), [(4,)], STEPS, 4),
        "x ** w": bare(lambda x, w: (1 + x * x) ** w, [(4,)], STEPS, 4),
        "1 + w": bare(lambda x, w: x * (1 + w), [(4,)], STEPS, 4),
        "-exp(w)": bare(lambda x, w: torch.exp(-x.square() * torch.exp(w)), [(STEPS, 4)], STEPS, 4),
        "position table": bare(lambda x, w: x + w, [(STEPS, 4)], STEPS, 4),
        "position table, cut": bare(lambda x, w: x + w[:, :STEPS], [(1, STEPS + 3, 4)], STEPS, 4),
        "position table, cut, time first": bare(lambda x, w: x + w[:STEPS, None], [(STEPS + 3, 4)], STEPS, 4, axis=1),
        "position table, step taken": bare(lambda x, w: (x * w)[:, 2], [(STEPS, 4)], STEPS, 4),
        "class token": bare(lambda x, w: torch.cat([w.expand(len(x), -1, -1), x], 1) * x.sum((1, 2), True),
                            [(1, 1, 4)], STEPS, 4),
        "class token, repeated": bare(lambda x, w: torch.cat([w.repeat(len(x), 1, 1), x], 1) * x.sum((1, 2), True),
                                      [(1, 2, 4)], STEPS, 4),
        "clamped": bare(lambda x, w: x * w.clamp(-0.5, 0.5), [(4,)], STEPS, 4),
        "softmax over parameters": bare(lambda x, w: (x * w.softmax(0)[:, None]).sum(1), [(STEPS,)], STEPS, 4),
        "gate": bare(lambda x, w: torch.where(x > 0, x * w, x), [(4,)], STEPS, 4),
        "where of a parameter": bare(lambda x, w: torch.where(x > 0, x, w * x.square()), [()], STEPS, 4),
        "masked fill": bare(
            lambda x, w: torch.where((x > 1)[..., :1], w, x), [(4,)], STEPS, 4
        ),
        "prompt": bare(lambda x, w: torch.cat([w[None].expand(len(x), -1, -1) * x[:, :1], x], 1), [(3, 4)], STEPS, 4),
        "rms by hand": bare(
            lambda x, w: x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6) * (1 + w), [(4,)], STEPS, 4
        ),
        "global response norm": bare(_grn, [(4,), (4,)], 5, 6, 4),
    }  # fmt: skip


def _grn(x: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
    size = x.norm(dim=(1, 2), keepdim=True)
    return x + beta + gamma * (x * size / (size.mean(-1, keepdim=True) + 1e-6))


class Pair(nn.Module):
    """nn.Bilinear of an input and a function of it."""

    def __init__(self, bias: bool) -> None:
        super().__init__()
        self.inner, self.layer = nn.Linear(5, 4), nn.Bilinear(5, 4, 3, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x, self.inner(x))


def _frozen() -> nn.Module:
    model = stack(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 3))
    model[0].requires_grad_(False)
    model[4].bias.requires_grad_(False)
    return model


def _others() -> dict[str, Case]:
    cases: dict[str, Case] = {}
    for lead in ((), (STEPS,), (2, 3)):
        for bias in (True, False):
            name = f"Bilinear on {1 + len(lead)} axes, {options(bias=bias)}"
            cases[name] = layer(lambda bias=bias: Pair(bias), *lead, 5)
        cases[f"frozen on {1 + len(lead)} axes"] = layer(_frozen, *lead, 4)
    cases["Bilinear, time first"] = layer(lambda: Pair(True), STEPS, 5, axis=1)
    for count in (1, 4):
        cases[f"PReLU, {count}"] = layer(lambda c=count: stack(nn.PReLU(c), nn.Flatten(), nn.Linear(24, 2)), 4, STEPS)
        cases[f"PReLU on vectors, {count}"] = layer(lambda c=count: nn.PReLU(c), 4)
        cases[f"PReLU on images, {count}"] = layer(lambda c=count: nn.PReLU(c), 4, 3, 2)
    cases["two heads"] = _two_heads
    return cases


def _two_heads(n: int) -> tuple[nn.Module, Losses]:
    """Losses from two layers, of which one sees even steps alone."""
    model = nn.ModuleList([nn.Linear(4, 5), nn.Linear(5, 3), nn.Linear(5, 2)]).double()
    x = torch.randn(n, STEPS, 4).double()

    def losses() -> Tensor:
        hidden = torch.tanh(model[0](x))
        return bowl(model[1](hidden[:, ::2])) + bowl(model[2](hidden.mean(1)))

    return model, losses


CASES: dict[str, Case] = _linear() | _shared() | _products() | _broadcast() | _others()
