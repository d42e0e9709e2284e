"""Small models, one for each way in which a parameter may meet the samples: by views, through other parameters, …

`CONSTRUCTS` take no slow path. Inputs (n, 6), (n, 7, 6), (n, 4, 8, 8) or tokens (n, 7); n = 2, 3, 5.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

Forward = Callable[[Any, Tensor], Tensor]
Inputs = Callable[[int], Tensor]
Construct = tuple[Callable[[], nn.Module], Inputs]


class Made(nn.Module):
    """A function of parameters of the given shapes and of the input."""

    def __init__(self, forward: Forward, **shapes: tuple[int, ...]) -> None:
        super().__init__()
        for name, shape in shapes.items():
            self.register_parameter(name, nn.Parameter(torch.randn(shape) * 0.5))
        self.function = forward

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def made(forward: Forward, **shapes: tuple[int, ...]) -> Callable[[], nn.Module]:
    """A maker of `Made`."""
    return lambda: Made(forward, **shapes)


def vectors(n: int) -> Tensor:
    return torch.randn(n, 6)


def sequences(n: int) -> Tensor:
    return torch.randn(n, 7, 6)


def images(n: int) -> Tensor:
    return torch.randn(n, 4, 8, 8)


def tokens(n: int) -> Tensor:
    return torch.randint(0, 9, (n, 7))


class Positions(nn.Module):
    """GPT-2's input: tokens and a position table that is looked up once; BERT's kinds, looked up per sample."""

    def __init__(self, tied: bool = False) -> None:
        super().__init__()
        self.words, self.places, self.kinds = nn.Embedding(9, 6), nn.Embedding(10, 6), nn.Embedding(2, 6)
        self.norm, self.head = nn.LayerNorm(6), nn.Linear(6, 9, bias=False)
        if tied:
            self.head.weight = self.words.weight

    def forward(self, x: Tensor) -> Tensor:
        places = torch.arange(x.shape[1])[None]
        hidden = self.words(x) + self.places(places) + self.kinds(x % 2)
        return self.head(self.norm(hidden).tanh())


class RelativeBias(nn.Module):
    """Swin's and T5's attention: a table of biases, indexed by the distance of two positions."""

    def __init__(self, lookup: str) -> None:
        super().__init__()
        self.qkv, self.table, self.lookup = nn.Linear(6, 18), nn.Parameter(torch.randn(13, 2)), lookup
        if lookup == "network":
            self.net = nn.Sequential(nn.Linear(1, 5), nn.ReLU(), nn.Linear(5, 2, bias=False))
            del self.table

    def biases(self) -> Tensor:
        apart = torch.arange(7)[:, None] - torch.arange(7)[None] + 6
        if self.lookup == "index":
            return self.table[apart.view(-1)].view(7, 7, -1).permute(2, 0, 1).contiguous()
        if self.lookup == "embedding":
            return F.embedding(apart, self.table).permute(2, 0, 1)
        table = self.net(torch.arange(-6.0, 7.0, dtype=self.qkv.weight.dtype)[:, None])
        return 16 * torch.sigmoid(table[apart.view(-1)].view(7, 7, -1).permute(2, 0, 1))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).view(*x.shape[:2], 3, 2, 3).permute(2, 0, 3, 1, 4)
        scores = q @ k.transpose(-1, -2) + self.biases().unsqueeze(0)
        return (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)


class Scan(nn.Module):
    """Mamba's decay: exp of −exp(A_log) times a step of each position; and D, a skip."""

    def __init__(self) -> None:
        super().__init__()
        self.log_decay, self.skip = nn.Parameter(torch.randn(6, 3)), nn.Parameter(torch.randn(6))
        self.step = nn.Linear(6, 6)
        self.filter = nn.Conv1d(6, 6, 3, groups=6, padding=2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.filter(x.transpose(1, 2))[..., : x.shape[1]].transpose(1, 2)
        decay = -torch.exp(self.log_decay.float() if x.dtype is torch.float32 else self.log_decay)
        step = F.softplus(self.step(x))
        state = x.new_zeros(len(x), 6, 3)
        outs = []
        for t in range(x.shape[1]):
            state = torch.exp(step[:, t, :, None] * decay) * state + x[:, t, :, None]
            outs.append(state.sum(-1))
        return torch.stack(outs, 1) + x * self.skip


class StandardConv(nn.Conv2d):
    """A convolution with a standardised weight, scaled by a gain (nf_resnet, BiT)."""

    def __init__(self, batch_norm: bool) -> None:
        super().__init__(4, 5, 3, padding=1)
        self.gain, self.batch_norm = nn.Parameter(torch.rand(5, 1, 1, 1) + 0.5), batch_norm

    def forward(self, x: Tensor) -> Tensor:
        if self.batch_norm:
            flat = self.weight.reshape(1, 5, -1)
            weight = F.batch_norm(flat, None, None, (self.gain * 0.3).view(-1), training=True, eps=1e-6)
            weight = weight.reshape_as(self.weight)
        else:
            var, mean = torch.var_mean(self.weight, dim=(1, 2, 3), keepdim=True)
            weight = (self.weight - mean) / (var + 1e-6).sqrt() * self.gain
        return F.conv2d(x, weight, self.bias, padding=1)


class SplitBiases(nn.Module):
    """BEiT's q and v biases, with zeros between; and a query token that is expanded over the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.query = nn.Parameter(torch.randn(18, 6)), nn.Parameter(torch.randn(2, 6))
        self.q, self.v = nn.Parameter(torch.randn(6)), nn.Parameter(torch.randn(6))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.query.expand(len(x), -1, -1), x], 1)
        out = F.linear(x, self.weight, torch.cat([self.q, torch.zeros_like(self.q), self.v]))
        q, k, v = out.chunk(3, -1)
        return F.scaled_dot_product_attention(q, k, v)


class Queries(nn.Module):
    """A transformer's decoder on learned queries that every sample shares."""

    def __init__(self) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.randn(3, 6))
        self.net = nn.TransformerDecoderLayer(6, 2, 8, dropout=0.0, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(self.query.unsqueeze(0).expand(len(x), -1, -1), x)


def low_rank(p: Any, x: Tensor) -> Tensor:
    """Merged LoRA; the weight is read through the sum alone."""
    return F.linear(x, p.w + 0.5 * p.up @ p.down)


def cross_terms(p: Any, x: Tensor) -> Tensor:
    """One parameter read as it is, through a product with another, and as rows."""
    return F.linear(x, p.w) + F.linear(x.tanh(), p.w * p.s) + F.linear(x, p.w[1:3]).sum(-1, keepdim=True)


def global_response(p: Any, x: Tensor) -> Tensor:
    """ConvNeXt v2's GRN, channels last."""
    size = x.norm(dim=(1, 2), keepdim=True)
    size = size / (size.mean(-1, keepdim=True) + 1e-6)
    return x + torch.addcmul(p.bias.view(1, 1, 1, -1), p.weight.view(1, 1, 1, -1), x * size)


def normed(p: Any, x: Tensor) -> Tensor:
    """Gemma's RMSNorm: 1 + w."""
    return (x * (x.square().mean(-1, keepdim=True) + 1e-6).rsqrt()) * (1.0 + p.w)


def disentangled(p: Any, x: Tensor) -> Tensor:
    """DeBERTa's and XLNet's relative terms: projected positions against each sample's queries, and a query's bias."""
    q = F.linear(x, p.wq)
    keys = F.linear(p.table, p.wk)
    return (q + p.u) @ x.transpose(1, 2) + (q + p.v) @ keys.t()


VIEWS: dict[str, Construct] = {
    "slice of positions": (made(lambda p, x: x + p.w[:, : x.shape[1]], w=(1, 9, 6)), sequences),
    "a slice and the rest": (made(lambda p, x: x + p.w[:7] + p.w[2:], w=(9, 6)), sequences),
    "narrow": (made(lambda p, x: x @ p.w.narrow(0, -6, 6), w=(8, 4)), sequences),
    "narrow of columns": (made(lambda p, x: F.linear(x, p.w.narrow(1, 1, 6)), w=(3, 8)), sequences),
    "select": (made(lambda p, x: x * p.w[-1] + p.w[0], w=(3, 6)), sequences),
    "select a column": (made(lambda p, x: x * p.w[:, 1] + p.w.select(-1, -1), w=(6, 3)), sequences),
    "select twice": (made(lambda p, x: F.linear(x, p.w[1]) + F.linear(x, p.w[1]).tanh(), w=(3, 4, 6)), sequences),
    "unbind": (made(lambda p, x: x * p.w.unbind()[1] + p.w.unbind(0)[0] + p.w.unbind()[1], w=(2, 6)), sequences),
    "permute": (made(lambda p, x: x @ p.w.permute(1, 0), w=(4, 6)), sequences),
    "permute to the same": (made(lambda p, x: x @ p.w.permute(0, 1), w=(6, 4)), sequences),
    "movedim of three axes": (made(lambda p, x: x @ p.w.movedim(0, 2)[0], w=(4, 2, 6)), sequences),
    "flatten": (made(lambda p, x: F.linear(x, p.w.flatten(1)), w=(4, 3, 2)), sequences),
    "view, split": (made(lambda p, x: torch.cat([x, x], -1) + p.w.view(2, 12).split(1)[1], w=(24,)), sequences),
    "transposed chunks": (made(lambda p, x: x @ p.w.t().chunk(2, 1)[0] + x @ p.w.t().chunk(2, 1)[1], w=(6, 6)),
                          sequences),
    "chunks of the transpose": (
        made(lambda p, x: x[..., :3] @ p.w.t().chunk(2)[0] + x[..., 3:] @ p.w.t().chunk(2)[1], w=(6, 6)), sequences),
    "rows of a transpose, transposed": (made(lambda p, x: x[..., :2] @ p.w.t()[1:3].t().t(), w=(4, 6)), sequences),
    "view of a transpose": (made(lambda p, x: x * p.w.t().reshape(-1), w=(2, 3)), sequences),
    "rows by a step": (made(lambda p, x: x * p.w[::2].reshape(-1), w=(4, 3)), sequences),
    "rows of rows": (made(lambda p, x: F.linear(x, p.w[1:6][1:3]), w=(8, 6)), sequences),
    "convolution, viewed": (made(lambda p, x: F.conv2d(x, p.w.view(5, 4, 1, 1), p.b[1:]), w=(5, 4), b=(6,)), images),
    "number read twice": (made(lambda p, x: x + p.b + x * p.b, b=()), vectors),
    "number read thrice": (made(lambda p, x: x * p.b.exp() - p.b + p.b.view(1) * x, b=()), sequences),
    "lookup by constants": (made(lambda p, x: x + p.w[[0, 2, 2, 1, 0, 4, 3]], w=(5, 6)), sequences),
    "a row for each sample": (made(lambda p, x: p.w[x], w=(9, 4)), tokens),
    "a matrix for each token": (made(lambda p, x: p.w[x].sum(1), w=(9, 2, 3)), tokens),
    "a number for each token": (made(lambda p, x: p.w[x - 9].cumsum(1), w=(9,)), tokens),
    "index_select": (made(lambda p, x: p.w.index_select(0, x.flatten()).view(*x.shape, 4), w=(9, 4)), tokens),
    "index_select by constants": (made(lambda p, x: x + p.w.index_select(-2, torch.arange(7)), w=(8, 6)), sequences),
    "two indices": (made(lambda p, x: p.w[x, x.flip(1)], w=(9, 9)), tokens),
    "gather": (made(lambda p, x: p.w.expand(len(x), 9).gather(1, x), w=(9,)), tokens),
    "flip": (made(lambda p, x: x * p.w.flip(0), w=(6,)), sequences),
    "clone, contiguous": (made(lambda p, x: F.linear(x, p.w.t().contiguous().clone()), w=(6, 4)), sequences),
    "squeezed": (made(lambda p, x: F.linear(x, p.w.squeeze(1)) + p.b.squeeze(), w=(4, 1, 6), b=(1, 4, 1)), sequences),
}  # fmt: skip

SUBGRAPHS: dict[str, Construct] = {
    "position table": (Positions, tokens),
    "position table beside a tie": (lambda: Positions(tied=True), tokens),
    "relative table, indexed": (lambda: RelativeBias("index"), sequences),
    "relative table, looked up": (lambda: RelativeBias("embedding"), sequences),
    "relative network": (lambda: RelativeBias("network"), sequences),
    "one plus": (made(normed, w=(6,)), sequences),
    "state space": (Scan, sequences),
    "weight norm": (lambda: nn.Sequential(parametrizations.weight_norm(nn.Linear(6, 4)), nn.Tanh(), nn.Linear(4, 2)),
                    sequences),
    "weight norm, convolution": (lambda: parametrizations.weight_norm(nn.Conv1d(7, 4, 3, groups=1), dim=2), sequences),
    "spectral norm": (lambda: parametrizations.spectral_norm(nn.Linear(6, 4)).eval(), sequences),
    "orthogonal": (lambda: parametrizations.orthogonal(nn.Linear(6, 4), orthogonal_map="matrix_exp"), sequences),
    "standard weights": (lambda: StandardConv(False), images),
    "standard weights by batch norm": (lambda: StandardConv(True), images),
    "global response": (made(global_response, weight=(8,), bias=(8,)), images),
    "affine": (made(lambda p, x: torch.addcmul(p.b, p.a, x, value=1.5), a=(1, 1, 6), b=(1, 1, 6)), sequences),
    "split biases, token": (SplitBiases, sequences),
    "learned queries": (Queries, sequences),
    "merged low rank": (made(low_rank, w=(4, 6), up=(4, 2), down=(2, 6)), sequences),
    "cross terms": (made(cross_terms, w=(4, 6), s=(4, 1)), sequences),
    "relative terms": (made(disentangled, wq=(6, 6), wk=(6, 6), table=(7, 6), u=(6,), v=(6,)), sequences),
    "chunks of a computed bias": (
        made(lambda p, x: x * (p.b * p.s).chunk(2)[0] + (p.b * p.s).chunk(2)[1] * p.s, b=(12,), s=()), sequences),
    "shared by heads": (
        made(lambda p, x: torch.bmm(x.repeat_interleave(2, 0), (p.w * p.s).repeat(len(x), 1, 1)).unflatten(0, (-1, 2)),
             w=(2, 6, 4), s=()), sequences),
    "tiled": (made(lambda p, x: x * p.w.repeat(7, 3), w=(1, 2)), sequences),
    "tiled over samples": (made(lambda p, x: (x.flatten(0, 1) * p.w.repeat(len(x), 2)).view_as(x), w=(7, 3)),
                           sequences),
    "softmax of weights": (made(lambda p, x: (x * p.w.softmax(0)[:, None]).sum(1), w=(7,)), sequences),
    "half of a table": (made(lambda p, x: x + p.w[:, :3].repeat(1, 2).sigmoid(), w=(7, 4)), sequences),
    "generated filter": (made(lambda p, x: F.conv1d(x, (p.w @ p.v).view(5, 7, 3)), w=(5, 2), v=(2, 21)), sequences),
    "complex filter": (
        made(lambda p, x: torch.fft.irfft(torch.fft.rfft(x, dim=1) * torch.view_as_complex(p.w), n=7, dim=1),
             w=(4, 6, 2)), sequences),
}  # fmt: skip


class Recurrent(nn.Module):
    """A recurrent layer that starts from learned states."""

    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.layer = kind(6, 5, batch_first=True)
        count = 2 if kind is nn.LSTM else 1
        self.start = nn.ParameterList([nn.Parameter(torch.randn(1, 1, 5)) for _ in range(count)])

    def forward(self, x: Tensor) -> Tensor:
        start = tuple(s.expand(1, len(x), 5).contiguous() for s in self.start)
        return self.layer(x, start if len(start) == 2 else start[0])[0]


class Gate(nn.Module):
    """A custom Function, of which nothing is known."""

    class Twice(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor, p: Tensor) -> Tensor:
            ctx.save_for_backward(x, p)
            return 2 * x * p.sin()

        @staticmethod
        def backward(ctx: Any, delta: Tensor) -> tuple[Tensor, Tensor]:
            x, p = ctx.saved_tensors
            assert not torch._C._functorch.is_batchedtensor(delta)  # torch.vmap cannot send a batch through
            if float(x.abs().sum()) < 0:  # reads a value
                return delta, p
            return 2 * delta * p.sin(), (2 * delta * x * p.cos()).sum_to_size(p.shape)

    def __init__(self) -> None:
        super().__init__()
        self.p, self.first = nn.Parameter(torch.randn(6)), nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.Twice.apply(self.first(x), self.p)  # type: ignore[no-untyped-call]


class Bags(nn.Module):
    """EmbeddingBag over rows, or two bags of unequal length for each sample."""

    def __init__(self, mode: str, ragged: bool = False, weighted: bool = False, **options: Any) -> None:
        super().__init__()
        self.bag, self.head = nn.EmbeddingBag(9, 6, mode=mode, **options), nn.Linear(6, 2)
        self.ragged = ragged
        self.weights = nn.Parameter(torch.randn(9)) if weighted else None

    def forward(self, x: Tensor) -> Tensor:
        weights = None if self.weights is None else self.weights[x]
        if not self.ragged:
            return self.head(self.bag(x, per_sample_weights=weights))
        starts = torch.arange(len(x))[:, None] * x.shape[1] + torch.tensor([0, 2])
        weights = None if weights is None else weights.flatten()
        return self.head(self.bag(x.flatten(), starts.flatten(), weights)).unflatten(0, (len(x), 2))


NODES: dict[str, Construct] = {
    "bilinear": (made(lambda p, x: F.bilinear(x, x.tanh(), p.w, p.b), w=(3, 6, 6), b=(3,)), vectors),
    "bilinear on sequences": (made(lambda p, x: F.bilinear(x, x.tanh(), p.w), w=(2, 6, 6)), sequences),
    "bilinear, wide": (made(lambda p, x: F.bilinear(x, x[..., :1], p.w), w=(2, 6, 1)), sequences),
    "bag, mean": (lambda: Bags("mean"), tokens),
    "bag, sum": (lambda: Bags("sum", padding_idx=3), tokens),
    "bag, mean, padded": (lambda: Bags("mean", padding_idx=0), tokens),
    "bag, mean, ragged": (lambda: Bags("mean", ragged=True, padding_idx=1), tokens),
    "bag, sum, weighted": (lambda: Bags("sum", weighted=True), tokens),
    "bag, sum, ragged and weighted": (lambda: Bags("sum", ragged=True, weighted=True), tokens),
    "bag, max": (lambda: Bags("max"), tokens),
    "custom function": (Gate, sequences),
    "learned start, LSTM": (lambda: Recurrent(nn.LSTM), sequences),
    "learned start, GRU": (lambda: Recurrent(nn.GRU), sequences),
    "where": (made(lambda p, x: torch.where(x > 0, x * p.w, p.t), w=(6,), t=(1, 6)), sequences),
    "masked by a token": (made(lambda p, x: torch.where((x.sum(-1) > 0)[..., None], p.t, x) @ p.w, w=(6, 3), t=(6,)),
                          sequences),
    "divided": (made(lambda p, x: x / p.w + p.v / (x.square() + 1), w=(6,), v=(7, 6)), sequences),
    "power": (made(lambda p, x: (x.square() + 0.1) ** p.w, w=(1,)), sequences),
    "middle axes": (made(lambda p, x: ((x.transpose(0, 1) + p.w) * p.v).transpose(0, 1), w=(7, 1, 6), v=(7, 1, 1)),
                    sequences),
    "gate": (made(lambda p, x: x.tanh() * p.w * x, w=(7, 1)), sequences),
    "heads by bmm": (made(lambda p, x: torch.einsum("nthd,hde->nthe", x.unflatten(-1, (2, 3)), p.w), w=(2, 3, 4)),
                     sequences),
    "einsum": (made(lambda p, x: torch.einsum("ntd,de->nte", x, p.w), w=(6, 4)), sequences),
    "einsum, transposed": (made(lambda p, x: torch.einsum("ntd,ed->net", x, p.w), w=(4, 6)), sequences),
    "scores of heads": (made(lambda p, x: torch.einsum("hd,nthd->nth", p.w, x.unflatten(-1, (2, 3))), w=(2, 3)),
                        sequences),
    "matrix from the left": (made(lambda p, x: p.w @ x, w=(5, 7)), sequences),
    "matrix times columns": (made(lambda p, x: (p.w @ x.t()).t(), w=(5, 6)), vectors),
    "matrix times vector": (made(lambda p, x: x.tanh() @ p.w, w=(6,)), sequences),
    "vector times matrix": (made(lambda p, x: p.w @ x, w=(7,)), sequences),
    "expanded product": (made(lambda p, x: torch.bmm(x, p.w.expand(len(x), 6, 4)), w=(6, 4)), sequences),
    "baddbmm": (made(lambda p, x: torch.baddbmm(p.b, x, p.w.expand(len(x), 6, 4), alpha=2, beta=3), w=(6, 4), b=(7, 4)),
                sequences),
    "addmm, scaled": (made(lambda p, x: torch.addmm(p.b, x, p.w, alpha=2, beta=3), w=(6, 4), b=(4,)), vectors),
    "addmm, one bias": (made(lambda p, x: torch.addmm(p.b, x, p.w), w=(6, 4), b=(1,)), vectors),
    "outer": (made(lambda p, x: x.sum(-1)[..., None] * p.w, w=(4,)), sequences),
    "attention to parameters": (
        made(lambda p, x: F.scaled_dot_product_attention(x, p.k.expand(len(x), 3, 6), p.v.expand(len(x), 3, 6)),
             k=(3, 6), v=(3, 6)), sequences),
    "lerp": (made(lambda p, x: torch.lerp(x, x.roll(1, -1), p.w), w=(6,)), sequences),
    "in place, a part": (made(lambda p, x: torch.zeros_like(x).index_copy(1, torch.arange(3), x[:, :3] * p.w), w=(6,)),
                         sequences),
    "cosine": (made(lambda p, x: F.cosine_similarity(x.tanh(), p.w, dim=-1), w=(6,)), sequences),
    "distance": (made(lambda p, x: torch.cdist(x.tanh(), p.w.expand(len(x), 3, 6)), w=(3, 6)), sequences),
}  # fmt: skip

LAYERS: dict[str, Construct] = {
    "conv1d same": (lambda: nn.Conv1d(7, 4, 3, padding="same", dilation=2), sequences),
    "conv2d valid": (lambda: nn.Conv2d(4, 3, (3, 2), padding="valid", stride=2), images),
    "conv2d same": (lambda: nn.Conv2d(4, 3, (3, 1), padding="same"), images),
    "conv2d same, even": (lambda: nn.Conv2d(4, 3, (2, 4), padding="same"), images),
    "conv3d valid": (lambda: nn.Conv3d(2, 3, 2, padding="valid"), lambda n: torch.randn(n, 2, 4, 3, 5)),
    "conv3d same": (lambda: nn.Conv3d(2, 3, 3, padding="same"), lambda n: torch.randn(n, 2, 4, 3, 5)),
    "conv2d, one number": (made(lambda p, x: F.conv2d(x, p.w, stride=2, padding=1, dilation=2), w=(3, 4, 3, 3)),
                           images),
    "group norm of vectors": (lambda: nn.Sequential(nn.GroupNorm(2, 6), nn.Linear(6, 3)), vectors),
    "group norm of sequences": (lambda: nn.Sequential(nn.GroupNorm(7, 7), nn.Linear(6, 3)), sequences),
    "group norm of volumes": (lambda: nn.GroupNorm(2, 4), lambda n: torch.randn(n, 4, 3, 2, 2)),
    "batch norm of vectors": (lambda: nn.Sequential(nn.BatchNorm1d(6).eval(), nn.Linear(6, 2)), vectors),
    "prelu of vectors": (lambda: nn.PReLU(6), vectors),
    "embedding, four axes": (lambda: nn.Embedding(9, 3), lambda n: torch.randint(0, 9, (n, 2, 3, 4))),
    "embedding, one axis": (lambda: nn.Embedding(9, 3), lambda n: torch.randint(0, 9, (n,))),
}  # fmt: skip

CONSTRUCTS: dict[str, Construct] = {**VIEWS, **SUBGRAPHS, **NODES, **LAYERS}
