"""A small GPT: pre-norm transformer decoder with learned positions (Radford et al. 2019, GPT-2).

Initialisation as in GPT-2: every matrix and embedding N(0, 0.02²), the projections back into the residual
stream N(0, 0.02²/(2·layers)) (section 2.3: "scale the weights of residual layers at initialization by a
factor of 1/√N", N the number of residual layers), biases zero, norms one.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clipbench.config.checks import at_least, fraction, require
from clipbench.data.base import Spec
from clipbench.models.fit import require_kind

STD = 0.02


class Attention(nn.Module):
    """Causal self-attention; queries, keys and values have a matrix (width, width) each, so each is a layer of its own
    to whatever treats layers apart."""

    def __init__(self, width: int, heads: int, dropout: float, bias: bool) -> None:
        super().__init__()
        self.heads = heads
        self.dropout = dropout
        self.queries = nn.Linear(width, width, bias=bias)
        self.keys = nn.Linear(width, width, bias=bias)
        self.values = nn.Linear(width, width, bias=bias)
        self.projection = nn.Linear(width, width, bias=bias)

    def forward(self, hidden: Tensor) -> Tensor:
        """(n, context, width) → the same."""
        n, context, width = hidden.shape
        apart = (n, context, self.heads, width // self.heads)
        parts = (self.queries(hidden), self.keys(hidden), self.values(hidden))
        queries, keys, values = (part.view(apart).transpose(1, 2) for part in parts)  # (n, heads, context, width/heads)
        dropout = self.dropout if self.training else 0.0
        mixed = F.scaled_dot_product_attention(queries, keys, values, dropout_p=dropout, is_causal=True)
        return self.projection(mixed.transpose(1, 2).reshape(n, context, width))  # type: ignore[no-any-return]


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)), with dropout on both branches."""

    def __init__(self, width: int, heads: int, dropout: float, bias: bool) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(width, bias=bias)
        self.attention = Attention(width, heads, dropout, bias)
        self.mlp_norm = nn.LayerNorm(width, bias=bias)
        self.expand = nn.Linear(width, 4 * width, bias=bias)
        self.contract = nn.Linear(4 * width, width, bias=bias)
        self.drop = nn.Dropout(dropout)

    def forward(self, hidden: Tensor) -> Tensor:
        """(n, context, width) → the same."""
        hidden = hidden + self.drop(self.attention(self.attention_norm(hidden)))
        expanded = F.gelu(self.expand(self.mlp_norm(hidden)))
        return hidden + self.drop(self.contract(expanded))  # type: ignore[no-any-return]


class Transformer(nn.Module):
    """Small GPT for next-token prediction; context and vocabulary are the dataset's.

    layers, heads, width: heads must divide width.  dropout: on embeddings, attention weights and both
    branches.
    tied_head: the output layer uses the token embedding's matrix.  bias: of linear layers and norms. Both are paper
    2's (arXiv 2605.11838, small GPT), as are the other defaults.
    Raises ValueError unless the dataset has tokens, or where a number is out of range.
    """

    def __init__(
        self,
        spec: Spec,
        layers: int = 6,
        heads: int = 6,
        width: int = 384,
        dropout: float = 0.2,
        tied_head: bool = True,
        bias: bool = True,
    ) -> None:
        super().__init__()
        require_kind("transformer", spec, "tokens")
        at_least("layers", layers, 1)
        at_least("heads", heads, 1)
        require(width >= 1 and width % heads == 0, "width", f"a multiple of heads ({heads})", width)
        fraction("dropout", dropout)
        self.tokens = nn.Embedding(spec.outputs, width)
        self.positions = nn.Embedding(spec.shape[0], width)
        self.drop = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(Block(width, heads, dropout, bias) for _ in range(layers))
        self.norm = nn.LayerNorm(width, bias=bias)
        self.head = nn.Linear(width, spec.outputs, bias=False)
        self._initialise(layers)
        if tied_head:
            self.head.weight = self.tokens.weight

    def forward(self, tokens: Tensor) -> Tensor:
        """(n, t) int64, t at most the context → (n, t, vocabulary)."""
        # Positions are looked up per sample, although all rows agree, so that per-sample gradients see a
        # batch here too.
        places = torch.arange(tokens.shape[1], device=tokens.device).expand(tokens.shape)
        hidden = self.drop(self.tokens(tokens) + self.positions(places))
        for block in self.blocks:
            hidden = block(hidden)
        return self.head(self.norm(hidden))  # type: ignore[no-any-return]

    def _initialise(self, layers: int) -> None:
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                residual = name.endswith(("attention.projection.weight", "contract.weight"))
                nn.init.normal_(parameter, std=STD / (2 * layers) ** 0.5 if residual else STD)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)
