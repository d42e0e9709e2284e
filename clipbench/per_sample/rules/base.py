"""What the engine asks of a rule: norms and weighted sums of one autograd node's per-sample gradients."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from clipbench.per_sample.factors import row_norms, wide
from clipbench.per_sample.layout import Layout, guess_layout
from clipbench.per_sample.slots import Node, Slot


class Use(ABC):
    """One autograd node that reads parameters, in one backward pass.

    A subclass is made from the node while its saved tensors are alive; `bind` then hands it the gradient δ of the
    node's output. `slots` maps a role ("weight", "bias") to the parameter that plays it. `rows` is the number of
    rows of δ, n · positions, whose order is `layout`.
    """

    node: Node
    slots: dict[str, Slot]
    lead: tuple[int, ...]
    delta: Tensor

    def __init__(self, node: Node, slots: Mapping[str, Slot], lead: Iterable[int], n: int) -> None:
        self.node = node
        self.slots = dict(slots)
        self.lead = tuple(lead)
        self.n = n
        self.layout = guess_layout(self.lead, n)

    @property
    def edge(self) -> GradientEdge:
        """Where δ is taken from the backward pass."""
        return GradientEdge(self.node, 0)

    @property
    def rows(self) -> int:
        """Rows of δ: all leading axes together."""
        return int(torch.Size(self.lead).numel())

    def flat(self, tensor: Tensor) -> Tensor:
        """(*lead, *features) → (n · positions, *features)."""
        return tensor if len(self.lead) == 1 else tensor.reshape(self.rows, *tensor.shape[len(self.lead) :])

    def split(self, tensor: Tensor) -> Tensor:
        """(*lead, *features) → (n, positions, *features)."""
        return self.layout.split(self.flat(tensor), self.n)

    def row_energy(self, delta: Tensor) -> Tensor:
        """Squared norm of every row of δ, (rows,): where a sample's gradient lives."""
        return row_norms(self.flat(delta).unsqueeze(-1))

    @abstractmethod
    def squared_norms(self, roles: frozenset[str]) -> Tensor:
        """Σ over `roles` of the squared norms of the per-sample gradients, (n,)."""

    @abstractmethod
    def instances(self, role: str, first: int, last: int) -> Tensor:
        """Per-sample gradients of samples first … last − 1, (last − first, *part_shape)."""

    @abstractmethod
    def weighted(self, gamma: Tensor) -> dict[str, Tensor]:
        """Σ_k γ_k g_k for every role; γ (n,)."""

    def drop(self, keep: Tensor) -> None:
        """Put zeros wherever a sample is not to be kept; `keep` (n,). A weight of zero is not enough: 0 · inf = NaN."""
        self.delta = self.masked(self.delta, keep)

    def masked(self, tensor: Tensor, keep: Tensor) -> Tensor:
        """(*lead, *features) with zeros in the rows of the samples that are not kept."""
        rows = self.layout.spread(keep, self.rows).reshape(*self.lead, *[1] * (tensor.dim() - len(self.lead)))
        return torch.where(rows, tensor, 0.0)

    def factors(self, role: str) -> tuple[Tensor, Tensor] | None:
        """(n, positions, p) and (n, positions, q) with g_k = Σ_t l_t r_tᵀ, where the gradient has that form."""
        return None

    def instance_bytes(self, role: str) -> float:
        """Memory that one sample's gradient takes, for the size of a chunk."""
        return 8.0 * self.slots[role].param.numel()


class SmallUse(Use):
    """A node whose parameters are so small beside its input that per-sample gradients are simply formed."""

    def __init__(self, node: Node, slots: Mapping[str, Slot], lead: Iterable[int], n: int) -> None:
        super().__init__(node, slots, lead, n)
        self._formed: dict[str, Tensor] = {}

    @abstractmethod
    def form(self, role: str) -> Tensor:
        """All per-sample gradients of a role, (n, *part_shape)."""

    def formed(self, role: str) -> Tensor:
        """`form`, once."""
        if role not in self._formed:
            self._formed[role] = self.form(role).reshape(self.n, *self.slots[role].part_shape)
        return self._formed[role]

    def squared_norms(self, roles: frozenset[str]) -> Tensor:
        return torch.stack([row_norms(self.formed(role)) for role in sorted(roles)]).sum(0)

    def instances(self, role: str, first: int, last: int) -> Tensor:
        return self.formed(role)[first:last]

    def drop(self, keep: Tensor) -> None:
        for role in self.slots:
            rows = self.formed(role)
            self._formed[role] = torch.where(keep.reshape(-1, *[1] * (rows.dim() - 1)), rows, 0.0)

    def weighted(self, gamma: Tensor) -> dict[str, Tensor]:
        return {role: weighted_rows(gamma, self.formed(role)) for role in self.slots}


def weighted_rows(gamma: Tensor, rows: Tensor) -> Tensor:
    """Σ_k γ_k rows_k; rows (n, *shape), γ (n,)."""
    flat = wide(rows).reshape(rows.shape[0], -1)
    return (gamma.to(flat.dtype) @ flat).reshape(rows.shape[1:])
