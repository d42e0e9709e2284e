"""What the engine asks of a rule: norms and weighted sums of one autograd node's per-sample gradients."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from clipbench.per_sample.care import promoted
from clipbench.per_sample.factors import across, row_norms
from clipbench.per_sample.layout import Layout, RowLayout, SampleWeights
from clipbench.per_sample.slots import Node, Slot


class Use(ABC):
    """One autograd node that reads parameters, in one backward pass.

    Made from the node while its saved tensors are alive; the backward pass then sets `delta`, the gradient δ of the
    node's output, of shape (*lead, *features). `slots` maps a role ("weight", "bias") to the parameter that plays it.
    The leading axes hold `rows` rows; `layout`, set by `placement`, says which sample each of them belongs to.
    """

    node: Node
    slots: dict[str, Slot]
    lead: tuple[int, ...]
    delta: Tensor
    doubted = False
    """Whether norms were asked for a second time, as numbers near the ends of their range are at work."""
    shows_samples = True
    """Whether it takes data, so that an axis of length n is likely to be that of the samples."""
    hooked = True
    """Whether a hook may change the gradient of its node's output: as long as nobody has looked (see `hooks`)."""
    whole_graph = False
    """Whether the node itself is differentiated again: then the backward pass must leave the graph as it is."""

    def __init__(self, node: Node, slots: dict[str, Slot], lead: Sequence[int], n: int) -> None:
        self.node = node
        self.slots = slots
        self.lead = tuple(lead)
        self.axes = tuple(range(len(lead)))
        self.rows = math.prod(lead)
        self.n = n
        self.layout: RowLayout = Layout.MAJOR
        self._gathered: dict[int, tuple[Tensor, Tensor]] = {}

    @property
    def edges(self) -> list[GradientEdge]:
        """Where δ is taken from the backward pass: as a rule, the node's one output."""
        return [GradientEdge(self.node, 0)]

    def receive(self, deltas: Sequence[Tensor | None]) -> bool:
        """Take the gradients at `edges`; whether there are any."""
        (delta,) = deltas
        if delta is None:
            return False
        self.delta = delta
        return True

    def flat(self, tensor: Tensor) -> Tensor:
        """(*lead, *features) → (rows, *features); the axes of rows are the first, unless `axes` says others."""
        if self.axes[-1:] != (len(self.axes) - 1,):
            tensor = tensor.movedim(self.axes, tuple(range(len(self.axes))))
        return tensor if len(self.lead) == 1 else tensor.reshape(self.rows, *tensor.shape[len(self.lead) :])

    def split(self, tensor: Tensor) -> Tensor:
        """(*lead, *features) → (n, positions, *features); a sample with fewer rows ends in zeros."""
        if isinstance(self.layout, Layout):
            return self.layout.split(self.flat(tensor), self.n)
        held, found = self._gathered.get(id(tensor), (None, tensor))
        if held is None:  # once: a tensor is asked for again for every group of samples
            found = self.layout.split(self.flat(tensor), self.n)
            self._gathered[id(tensor)] = tensor, found
        return found

    @property
    def one_each(self) -> bool:
        """Whether row k is sample k."""
        return self.rows == self.n and isinstance(self.layout, Layout)

    @property
    def positions(self) -> int:
        """Second axis of what `split` returns."""
        return self.layout.positions(self.rows, self.n)

    def marks(self, deltas: Sequence[Tensor | None]) -> Tensor:
        """What shows a row's owner: its entries of the gradients at `edges`, (rows, entries)."""
        (delta,) = deltas
        if delta is None:
            return torch.zeros(self.rows, 0, device="cpu")
        delta = torch.view_as_real(delta.resolve_conj()) if delta.is_complex() else delta
        return promoted(self.flat(delta)).reshape(self.rows, -1)

    def owners_of_rows(self, owners: Tensor) -> Tensor:
        """From the owners of the rows of `marks` to those of the rows that `split` takes."""
        return owners

    def gradient_rows(self) -> Tensor:
        """(rows, entries) that are zero exactly where a row's part of every gradient is, unless that is not finite."""
        return self.marks([self.delta])

    def reached(self, samples: Tensor) -> bool:
        """Whether any of these samples (n,) has a gradient that is not zero at all its rows. Reads values."""
        return bool(self.gradient_rows()[self.layout.spread(samples, self.rows)].any())

    def forget(self) -> None:
        """Norms are asked for again, with more care: what was kept of the first time is of no use."""
        self.doubted = True

    @abstractmethod
    def norms(self, roles: Collection[str]) -> Tensor:
        """Norms (n,) of the per-sample gradients of `roles`, taken together."""

    @abstractmethod
    def instances(self, role: str, first: int, last: int) -> Tensor:
        """Per-sample gradients of samples first … last − 1, (last − first, *part_shape)."""

    @abstractmethod
    def weighted(self, gamma: SampleWeights) -> dict[str, Tensor]:
        """Σ_k γ_k g_k for every role."""

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

    def lookups(self, role: str) -> tuple[Tensor, Tensor] | None:
        """Numbers (n, positions) and rows (n, positions, q), for a table: g_k[v] = Σ_{t: i_t = v} rows_t."""
        return None

    def instance_bytes(self, role: str) -> float:
        """Memory that one sample's gradient takes, for the size of a chunk."""
        return 8.0 * self.slots[role].param.numel()


class SmallUse(Use):
    """A node whose parameters are so small beside its input that per-sample gradients are simply formed."""

    def __init__(self, node: Node, slots: dict[str, Slot], lead: Sequence[int], n: int) -> None:
        super().__init__(node, slots, lead, n)
        self._formed: dict[str, Tensor] = {}

    @abstractmethod
    def form(self, role: str) -> Tensor:
        """All per-sample gradients of a role, (n, *part_shape)."""

    def formed(self, role: str) -> Tensor:
        """`form`, once, with the care of the first time it is asked for."""
        if role not in self._formed:
            self._formed[role] = self.form(role).reshape(self.n, *self.slots[role].part_shape)
        return self._formed[role]

    def norms(self, roles: Collection[str]) -> Tensor:
        parts = [row_norms(self.formed(role)) for role in sorted(roles)]
        return parts[0] if len(parts) == 1 else torch.hypot(*parts) if len(parts) == 2 else across(parts)

    def forget(self) -> None:
        super().forget()
        self._formed.clear()

    def instances(self, role: str, first: int, last: int) -> Tensor:
        return self.formed(role)[first:last]

    def drop(self, keep: Tensor) -> None:
        for role in self.slots:
            rows = self.formed(role)
            self._formed[role] = torch.where(keep.reshape(-1, *[1] * (rows.dim() - 1)), rows, 0.0)

    def weighted(self, gamma: SampleWeights) -> dict[str, Tensor]:
        return {role: weighted_rows(gamma.values, self.formed(role)) for role in self.slots}


def weighted_rows(gamma: Tensor, rows: Tensor) -> Tensor:
    """Σ_k γ_k rows_k; rows (n, *shape), γ (n,)."""
    flat = promoted(rows).reshape(rows.shape[0], -1)
    return (gamma.to(flat.dtype) @ flat).reshape(rows.shape[1:])
