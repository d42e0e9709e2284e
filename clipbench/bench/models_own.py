"""Networks as people write them by hand: recurrent classifiers, routed experts, graphs, adapters, spectra."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from clipbench.bench.models_zoo import CLASSES, VOCABULARY, Entry, classes, images, tokens
from clipbench.bench.problems import cross_entropy

LENGTH, WIDTH = 48, 96


class Recurrent(nn.Module):
    """Embedding, recurrent layer, linear head: on the last step of a time-first sequence, or on a packed one's mean."""

    def __init__(self, kind: Callable[..., nn.RNNBase], packed: bool, layers: int = 1, both: bool = False) -> None:
        super().__init__()
        self.table = nn.Embedding(VOCABULARY, WIDTH)
        self.layer = kind(WIDTH, WIDTH, num_layers=layers, bidirectional=both)
        self.head = nn.Linear(WIDTH * (2 if both else 1), CLASSES)
        self.packed = packed

    def forward(self, x: Tensor) -> Tensor:
        """Token numbers (n, t) → (n, classes). Where it is packed, a sample's first token gives its length."""
        steps = self.table(x.t())
        if not self.packed:
            return self.head(self.layer(steps)[0][-1])
        lengths = x[:, 0] % (LENGTH // 2) + LENGTH // 2
        out, _ = self.layer(pack_padded_sequence(steps, lengths.tolist(), enforce_sorted=False))
        out, _ = pad_packed_sequence(out)
        return self.head(out.sum(0) / lengths[:, None])


class TimeFirst(nn.Module):
    """nn.TransformerEncoder as PyTorch has it by default, time first, with a position table; the last step is read."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.places = nn.Embedding(VOCABULARY, WIDTH), nn.Embedding(LENGTH, WIDTH)
        layer = nn.TransformerEncoderLayer(WIDTH, 4, 4 * WIDTH, dropout=0.0)
        self.encoder = nn.TransformerEncoder(layer, 2)
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """(n, t) → (n, classes)."""
        steps = self.table(x.t()) + self.places(torch.arange(x.shape[1], device=x.device))[:, None]
        return self.head(self.encoder(steps))[-1]


class Query(nn.Module):
    """nn.Transformer whose target is a learned query, the same for all samples (as in DETR)."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(VOCABULARY, WIDTH)
        self.body = nn.Transformer(WIDTH, 4, 1, 1, 4 * WIDTH, dropout=0.0, batch_first=True)
        self.query = nn.Parameter(torch.randn(1, 4, WIDTH))
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """(n, t) → (n, classes)."""
        return self.head(self.body(self.table(x), self.query.expand(len(x), -1, -1)).mean(1))


class Experts(nn.Module):
    """A layer of experts between linear layers: each token goes to the best of four."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.router = nn.Embedding(VOCABULARY, WIDTH), nn.Linear(WIDTH, 4)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH)) for _ in range(4)
        )
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """(n, t) → (n, classes)."""
        flat = self.table(x).flatten(0, 1)
        share = self.router(flat).softmax(1)
        best = share.argmax(1)
        out = flat
        for place, expert in enumerate(self.experts):
            rows = (best == place).nonzero()[:, 0]
            out = out.index_add(0, rows, expert(flat[rows]) * share[rows, place, None])
        return self.head(out.unflatten(0, x.shape).mean(1))


class LowRank(nn.Module):
    """A network of linear layers W + B A, merged before the product; W is frozen."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(VOCABULARY, WIDTH)
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.down = nn.ParameterList(nn.Parameter(torch.randn(8, WIDTH) / 8) for _ in range(3))
        self.up = nn.ParameterList(nn.Parameter(torch.randn(WIDTH, 8) / 8) for _ in range(3))
        self.head = nn.Linear(WIDTH, CLASSES)
        self.layers.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        """(n, t) → (n, classes)."""
        hidden = self.table(x)
        for layer, down, up in zip(self.layers, self.down, self.up, strict=True):
            assert isinstance(layer, nn.Linear)
            hidden = torch.tanh(F.linear(hidden, layer.weight + 2.0 * up @ down, layer.bias))
        return self.head(hidden.mean(1))


class Graphs(nn.Module):
    """Message passing over a batch of graphs that is one large graph; a graph has between 8 and 23 nodes."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(VOCABULARY, WIDTH)
        self.messages = nn.ModuleList(nn.Linear(2 * WIDTH, WIDTH) for _ in range(3))
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(3))
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """(n, t) → (n, classes). A sample's first token gives its size, and the others its edges along a ring."""
        sizes = x[:, 0] % 16 + 8
        owner = torch.arange(len(x)).repeat_interleave(sizes)
        first = (sizes.cumsum(0) - sizes)[owner]
        place = torch.arange(len(owner)) - first
        node = self.table(x[owner, place])
        for step, (message, norm) in enumerate(zip(self.messages, self.norms, strict=True), 1):
            other = first + (place + step) % sizes[owner]
            sent = F.relu(message(torch.cat([node, node[other]], 1)))
            node = norm(node + torch.zeros_like(node).index_add(0, other, sent))
        pooled = node.new_zeros(len(x), WIDTH).index_add(0, owner, node)
        return self.head(pooled / sizes[:, None])


class Fourier(nn.Module):
    """A Fourier neural operator in two dimensions: complex weights for each low frequency."""

    def __init__(self, width: int = 24, modes: int = 6) -> None:
        super().__init__()
        self.lift = nn.Conv2d(3, width, 1)
        shape = (width, width, modes, modes)
        self.spectra = nn.ParameterList(nn.Parameter(torch.randn(shape, dtype=torch.cfloat) / width) for _ in range(2))
        self.local = nn.ModuleList(nn.Conv2d(width, width, 1) for _ in range(2))
        self.head = nn.Linear(width, CLASSES)
        self.modes = modes

    def forward(self, x: Tensor) -> Tensor:
        """(n, 3, h, w) → (n, classes)."""
        x = self.lift(x)
        for weight, local in zip(self.spectra, self.local, strict=True):
            spectrum = torch.fft.rfft2(x)
            low = spectrum[:, :, : self.modes, : self.modes]
            out = torch.zeros_like(spectrum)
            out[:, :, : self.modes, : self.modes] = torch.einsum("nihw,iohw->nohw", low, weight.to(low.dtype))
            x = F.gelu(torch.fft.irfft2(out, s=x.shape[-2:]) + local(x))
        return self.head(x.mean((2, 3)))


def convolutions_in_time() -> nn.Module:
    """A temporal convolutional network: dilated convolutions with weight norm."""
    layers: list[nn.Module] = [nn.Embedding(VOCABULARY, WIDTH), Transposed()]
    for dilation in (1, 2, 4):
        layers += [weight_norm(nn.Conv1d(WIDTH, WIDTH, 3, padding=dilation, dilation=dilation)), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(WIDTH, CLASSES))


class Transposed(nn.Module):
    """(n, t, d) → (n, d, t)."""

    def forward(self, x: Tensor) -> Tensor:
        """Swap the last two axes."""
        return x.transpose(1, 2)


def bag_of_words() -> nn.Module:
    """nn.EmbeddingBag and two linear layers, as in fastText."""
    bag = nn.EmbeddingBag(VOCABULARY, WIDTH, mode="mean")
    return nn.Sequential(bag, nn.Linear(WIDTH, 2 * WIDTH), nn.ReLU(), nn.Linear(2 * WIDTH, CLASSES))


def _tokens(family: str, title: str, make: Callable[[], nn.Module], note: str = "") -> Entry:
    return Entry(family, title, make, tokens(LENGTH), classes(), cross_entropy, note)


ENTRIES: dict[str, Entry] = {
    "lstm": _tokens("recurrent", "LSTM, time first", lambda: Recurrent(nn.LSTM, False)),
    "lstm_deep": _tokens("recurrent", "LSTM × 2, both ways", lambda: Recurrent(nn.LSTM, False, 2, True)),
    "gru": _tokens("recurrent", "GRU, time first", lambda: Recurrent(nn.GRU, False)),
    "lstm_packed": _tokens("recurrent", "LSTM, packed", lambda: Recurrent(nn.LSTM, True)),
    "tcn": _tokens("recurrent", "temporal convolutions", convolutions_in_time, "weight norm"),
    "encoder": _tokens("nn.Transformer", "nn.TransformerEncoder, time first", TimeFirst),
    "query": _tokens("nn.Transformer", "nn.Transformer, learned query", Query),
    "experts": _tokens("mixture of experts", "four experts by hand", Experts),
    "lora": _tokens("adapters", "merged low rank", LowRank),
    "graphs": _tokens("graphs", "message passing", Graphs),
    "fourier": Entry("spectra", "Fourier neural operator", Fourier, images(32), classes(), cross_entropy),
    "bag": _tokens("tables", "bag of words", bag_of_words),
}
