"""Small models, one for each kind of layer or way of using a parameter; n = 5 samples, no other axis of length 5."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

N = 5


class Attention(nn.Module):
    """nn.MultiheadAttention of x on itself, or on other keys and values."""

    def __init__(self, cross: bool = False, **options: object) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, **options)  # type: ignore[arg-type]
        self.cross = cross

    def forward(self, x: Tensor) -> Tensor:
        x = x if self.attention.batch_first else x.transpose(0, 1)
        keys = x[..., : self.attention.kdim] * 2 if self.cross else x
        out = self.attention(x, keys, keys, need_weights=self.cross)[0]
        return out if self.attention.batch_first else out.transpose(0, 1)


class Recurrent(nn.Module):
    """The outputs of a recurrent layer, and its last states."""

    def __init__(self, kind: type[nn.RNNBase], states: bool = False, **options: object) -> None:
        super().__init__()
        self.layer = kind(8, 6, batch_first=True, **options)
        self.states = states

    def forward(self, x: Tensor) -> Tensor:
        out, state = self.layer(x)
        if not self.states:
            return out
        last = state if isinstance(state, tuple) else (state,)
        return torch.cat([out.flatten(1), *(s.transpose(0, 1).flatten(1) for s in last)], 1)


class Tied(nn.Module):
    """A table that is also the output layer, and a layer called twice."""

    def __init__(self, size: int = 9, padding: int | None = None) -> None:
        super().__init__()
        self.table = nn.Embedding(size, 6, padding_idx=padding)
        self.hidden = nn.Linear(6, 6)
        self.head = nn.Linear(6, size, bias=False)
        self.head.weight = self.table.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.hidden(self.hidden(self.table(x)))))


class TiedThrough(nn.Module):
    """A matrix that is read as it is, through a product with a number, and its first rows."""

    def __init__(self) -> None:
        super().__init__()
        self.matrix, self.number = nn.Parameter(torch.randn(4, 6)), nn.Parameter(torch.tensor(0.7))

    def forward(self, x: Tensor) -> Tensor:
        out = F.linear(x, self.matrix) + F.linear(x.tanh(), self.matrix * self.number)
        return out + F.linear(x.sin(), self.matrix[:1])


class Power(nn.Module):
    """x to a learned power: no rule reads it, so the node is differentiated by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.power = nn.Parameter(torch.rand(6) + 1)

    def forward(self, x: Tensor) -> Tensor:
        return x.abs() ** self.power


class FromTheLeft(nn.Module):
    """A matrix times columns, one for each sample."""

    def __init__(self) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.randn(4, 6))

    def forward(self, x: Tensor) -> Tensor:
        return (self.matrix @ x.t()).t()


class Heads(nn.Module):
    """A matrix for each head."""

    def __init__(self) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.randn(2, 3, 4))

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("nthd,hde->nthe", x.unflatten(-1, (2, 3)), self.matrix)


class TiedLinear(nn.Module):
    """Two linear layers with one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 6)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x).tanh())


class Twice(nn.Module):
    """A convolution applied to its own output."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(self.layer(x).tanh())


class Bare(nn.Module):
    """Parameters that belong to no layer: class token, positions, shift, scale, matrix, temperature."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.randn(1, 1, 6))
        self.positions = nn.Parameter(torch.randn(1, 8, 6))
        self.shift, self.scale = nn.Parameter(torch.randn(6)), nn.Parameter(torch.randn(6))
        self.matrix = nn.Parameter(torch.randn(6, 4))
        self.temperature = nn.Parameter(torch.tensor(0.3))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.positions
        return ((x - self.shift) * self.scale) @ self.matrix * self.temperature


class Functional(nn.Module):
    """Operators called by hand on a layer's parameters, in another order of the axes, and through the time axis."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(6, 7)
        self.time = nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.linear(x.transpose(0, 1), self.inner.weight, self.inner.bias).relu_()
        return self.time(x.permute(1, 2, 0))


class Frames(nn.Module):
    """A convolution over frames folded into the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 4, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.flatten(0, 1)).unflatten(0, x.shape[:2])


class Checkpointed(nn.Module):
    """A block under activation checkpointing."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Sequential(nn.Linear(6, 7), nn.LayerNorm(7), nn.Tanh(), nn.Linear(7, 7))
        self.head = nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(checkpoint(self.block, x, use_reentrant=False))


class SineCosine(torch.autograd.Function):
    """x · sin p and x · cos p by one Function: a node with two outputs, for which there is no rule."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, p: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(x, p)
        return x * p.sin(), x * p.cos()

    @staticmethod
    def backward(ctx: Any, sine: Tensor, cosine: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        x, p = ctx.saved_tensors
        return sine * p.sin() + cosine * p.cos(), (sine * x * p.cos() - cosine * x * p.sin()).sum(0)


class Rotated(nn.Module):
    """A layer without a rule after one that has one."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.angle = nn.Linear(6, 6), nn.Parameter(torch.randn(6))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat(SineCosine.apply(self.first(x), self.angle), 1)  # type: ignore[no-untyped-call]


class Bilinear(nn.Module):
    """A bilinear layer after a linear one."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 6), nn.Bilinear(6, 6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x), x)


def frozen(model: nn.Sequential) -> nn.Sequential:
    """First layer frozen, and the bias of the last."""
    model[0].requires_grad_(False)
    model[-1].bias.requires_grad_(False)
    return model


def vectors() -> Tensor:
    return torch.randn(N, 6)


def sequences() -> Tensor:
    return torch.randn(N, 7, 6)


def wide_sequences() -> Tensor:
    return torch.randn(N, 7, 8)


def tokens() -> Tensor:
    return torch.randint(0, 9, (N, 7))


def images() -> Tensor:
    return torch.randn(N, 4, 9, 9)


def small_images() -> Tensor:
    return torch.randn(N, 4, 2, 2)


Case = tuple[Callable[[], nn.Module], Callable[[], Tensor]]
Seq = nn.Sequential

CASES: dict[str, Case] = {
    "linear": (lambda: Seq(nn.Linear(6, 7), nn.ReLU(inplace=True), nn.Linear(7, 3)), vectors),
    "linear without bias": (lambda: Seq(nn.Linear(6, 7, bias=False), nn.Tanh(), nn.Linear(7, 3, bias=False)), vectors),
    "linear on sequences": (lambda: Seq(nn.Linear(6, 4), nn.ReLU(inplace=True), nn.Linear(4, 3)), sequences),
    "linear, wide on sequences": (lambda: Seq(nn.Linear(6, 64), nn.Tanh(), nn.Linear(64, 70, bias=False)), sequences),
    "linear on four axes": (lambda: nn.Linear(9, 3), images),
    "frozen": (lambda: frozen(Seq(nn.Linear(6, 7), nn.Tanh(), nn.Linear(7, 7), nn.Linear(7, 3))), sequences),
    "conv1d": (lambda: Seq(nn.Conv1d(7, 6, 3, padding=1), nn.Tanh(), nn.Conv1d(6, 4, 4, padding="same")), sequences),
    "conv2d": (lambda: Seq(nn.Conv2d(4, 6, 3, stride=2, padding=1), nn.ReLU(True), nn.Conv2d(6, 8, 3)), images),
    "conv2d dilated, grouped": (lambda: nn.Conv2d(4, 8, 3, padding=2, dilation=2, groups=2), images),
    "conv2d wide": (lambda: Seq(nn.Conv2d(4, 70, 5), nn.Tanh(), nn.Conv2d(70, 3, 4)), images),
    "conv2d depthwise": (lambda: nn.Conv2d(4, 4, 3, padding=1, groups=4, bias=False), images),
    "conv2d circular": (lambda: nn.Conv2d(4, 6, 3, padding=1, padding_mode="circular"), images),
    "conv2d reflect": (lambda: nn.Conv2d(4, 6, (3, 1), padding=(1, 0), padding_mode="reflect"), images),
    "conv2d pointwise": (lambda: nn.Conv2d(4, 6, 1), images),
    "conv2d on a 2 × 2 map": (
        lambda: Seq(nn.Conv2d(4, 192, 3, padding=1), nn.Conv2d(192, 192, 3, padding=1)),
        small_images,
    ),
    "conv2d over frames": (Frames, lambda: torch.randn(N, 2, 3, 7, 7)),
    "conv3d": (lambda: nn.Conv3d(2, 3, 2, stride=(1, 2, 1), padding=1), lambda: torch.randn(N, 2, 4, 4, 4)),
    "conv transposed 1d": (lambda: nn.ConvTranspose1d(7, 3, 4, stride=2), sequences),
    "conv transposed 2d": (lambda: nn.ConvTranspose2d(4, 6, 3, 2, 1, output_padding=1, groups=2), images),
    "conv transposed 3d": (lambda: nn.ConvTranspose3d(2, 3, 2, stride=2), lambda: torch.randn(N, 2, 3, 3, 3)),
    "embedding": (lambda: Seq(nn.Embedding(9, 6, padding_idx=2), nn.Linear(6, 2)), tokens),
    "embedding, long": (lambda: nn.Embedding(9, 2), lambda: torch.randint(0, 9, (N, 200))),
    "layer norm": (lambda: Seq(nn.LayerNorm(6), nn.Linear(6, 6), nn.LayerNorm((7, 6))), sequences),
    "rms norm": (lambda: Seq(nn.RMSNorm(6), nn.Linear(6, 6), nn.RMSNorm(6)), sequences),
    "group norm": (lambda: Seq(nn.GroupNorm(2, 4), nn.Conv2d(4, 4, 1), nn.GroupNorm(1, 4)), images),
    "instance norm": (lambda: Seq(nn.InstanceNorm2d(4, affine=True), nn.Conv2d(4, 4, 1)), images),
    "batch norm in evaluation": (lambda: Seq(nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)).eval(), images),
    "prelu": (lambda: Seq(nn.PReLU(4), nn.Conv2d(4, 3, 3), nn.PReLU()), images),
    "attention": (lambda: Attention(batch_first=True), wide_sequences),
    "attention, time first": (lambda: Attention(), wide_sequences),
    "attention, other keys": (lambda: Attention(cross=True, batch_first=True, kdim=6, vdim=6), wide_sequences),
    "attention, chunked": (lambda: Attention(cross=True, batch_first=True), wide_sequences),
    "attention, bias keys": (lambda: Attention(add_bias_kv=True), wide_sequences),
    "encoder": (lambda: nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True), wide_sequences),
    "rnn": (lambda: Recurrent(nn.RNN), wide_sequences),
    "gru": (lambda: Recurrent(nn.GRU, num_layers=2, bidirectional=True), wide_sequences),
    "lstm": (lambda: Recurrent(nn.LSTM), wide_sequences),
    "lstm, deep, both ways, with states": (
        lambda: Recurrent(nn.LSTM, states=True, num_layers=2, bidirectional=True),
        wide_sequences,
    ),
    "tied embedding": (Tied, tokens),
    "tied, small table": (Tied, lambda: torch.randint(0, 9, (N, 30))),
    "tied, large table": (lambda: Tied(50), tokens),
    "tied, padded": (lambda: Tied(50, padding=3), tokens),
    "tied through others": (TiedThrough, sequences),
    "power": (Power, sequences),
    "heads": (Heads, sequences),
    "matrix from the left": (FromTheLeft, vectors),
    "tied linear": (TiedLinear, sequences),
    "called twice": (Twice, images),
    "bare parameters": (Bare, lambda: torch.randn(N, 7, 6)),
    "functional": (Functional, sequences),
    "checkpointed": (Checkpointed, sequences),
    "bilinear": (Bilinear, vectors),
    "weight norm": (
        lambda: Seq(nn.utils.parametrizations.weight_norm(nn.Linear(6, 4)), nn.Tanh(), nn.Linear(4, 2)),
        vectors,
    ),
    "embedding bag": (lambda: Seq(nn.EmbeddingBag(9, 6), nn.Linear(6, 2)), tokens),
}

SLOW_PATH: dict[str, Case] = {"two outputs": (Rotated, vectors)}
