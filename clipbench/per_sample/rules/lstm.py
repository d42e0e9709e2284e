"""A fused LSTM layer (oneDNN, CPU): the gates' gradients are recomputed from the layer's output, time step by step."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from clipbench.per_sample.care import promoted
from clipbench.per_sample.factors import across, factor_norms, row_norms
from clipbench.per_sample.layout import SampleWeights
from clipbench.per_sample.rules.base import Use
from clipbench.per_sample.slots import Node, Slot

OPERANDS = {1: "weight_ih", 2: "weight_hh", 3: "bias_ih", 4: "bias_hh"}


class LSTMUse(Use):
    """gates_t = W_ih x_t + b_ih + W_hh h_{t-1} + b_hh: with their gradients δ_t, two linear layers over time.

    All tensors (time, n, features). Unrolled LSTMs and GRUs (float64, CUDA without cuDNN) need no rule of their own.
    """

    def __init__(self, node: Node, slots: dict[str, Slot], n: int) -> None:
        super().__init__(node, slots, node._input_metadata[0].shape[:2], n)
        weights = [node._saved_weight0, node._saved_weight1]
        if node._saved_has_biases:
            weights += [node._saved_weight2, node._saved_weight3]
        self.weights = weights
        self.reverse = bool(node._saved_reverse)
        self.x = self.in_order(node._saved_input)
        self.out = self.in_order(node._saved_result0)
        self.start, self.cell = node._saved_hx_, node._saved_cx_
        self.gates: Tensor | None = None

    @property
    def edges(self) -> list[GradientEdge]:
        """Output, last hidden state, last cell state."""
        return [GradientEdge(self.node, output) for output in range(3)]

    def receive(self, deltas: Sequence[Tensor | None]) -> bool:
        self.deltas = deltas
        self.delta = torch.zeros_like(self.out) if deltas[0] is None else deltas[0]
        return any(delta is not None for delta in deltas)

    def marks(self, deltas: Sequence[Tensor | None]) -> Tensor:
        """A row for each member of the batch: all of its steps and last states."""
        batch = self.lead[1]
        parts = [promoted(d).movedim(-2, 0).reshape(batch, -1) for d in deltas if d is not None]
        return torch.cat(parts, 1) if parts else torch.zeros(batch, 0, device="cpu")

    def owners_of_rows(self, owners: Tensor) -> Tensor:
        return owners.repeat(self.lead[0])

    def gradient_rows(self) -> Tensor:
        return self.flat(self.gate_gradients())

    def in_order(self, sequence: Tensor) -> Tensor:
        """(time, n, features) in the order in which the layer goes through it."""
        return sequence.flip(0) if self.reverse else sequence

    def previous(self) -> Tensor:
        """h_{t-1}, (time, n, hidden)."""
        return torch.cat([self.start.reshape(1, *self.out.shape[1:]), self.out[:-1]])

    def gate_gradients(self) -> Tensor:
        """δ_t of the four gates before their nonlinearities, (time, n, 4 · hidden), from the last step to the first."""
        if self.gates is None:
            w_ih, w_hh, *biases = self.weights
            sums = self.x @ w_ih.t() + self.previous() @ w_hh.t()
            for bias in biases:
                sums += bias
            i, f, g, o = sums.chunk(4, dim=2)
            self.gates = self._through_time(i.sigmoid(), f.sigmoid(), g.tanh(), o.sigmoid())
        return self.gates

    def _through_time(self, i: Tensor, f: Tensor, g: Tensor, o: Tensor) -> Tensor:
        """From the gates' values to their gradients. All that needs no step after another is done for all at once."""
        cells = i.new_empty((len(i) + 1, *i.shape[1:]))
        cells[0] = self.cell.reshape(i.shape[1:])
        added = i * g
        for t in range(len(i)):
            torch.addcmul(added[t], f[t], cells[t], out=cells[t + 1])
        squashed = cells[1:].tanh()
        inner = o * (1 - squashed.square())  # ∂h/∂c
        slopes = torch.stack([g * i * (1 - i), cells[:-1] * f * (1 - f), i * (1 - g.square())], 2)  # ∂c/∂ the gates
        last = squashed * o * (1 - o)  # ∂h/∂ the output gate
        delta = self.in_order(self.delta)
        dh, dc = (torch.zeros_like(cells[0]) if d is None else d.reshape(cells[0].shape) for d in self.deltas[1:])
        gates = delta.new_empty((*i.shape[:2], 4, i.shape[2]))
        for t in reversed(range(len(i))):
            dh = dh + delta[t]
            dc = torch.addcmul(dc, dh, inner[t])
            torch.mul(dc.unsqueeze(1), slopes[t], out=gates[t, :, :3])
            torch.mul(dh, last[t], out=gates[t, :, 3])
            dh, dc = gates[t].flatten(1) @ self.weights[1], dc * f[t]
        return gates.flatten(2)

    def inputs(self, role: str) -> Tensor:
        """What a weight is multiplied with, (time, n, features)."""
        return self.x if role == "weight_ih" else self.previous()

    def factors(self, role: str) -> tuple[Tensor, Tensor] | None:
        if role.startswith("bias"):
            return None
        return self.split(self.gate_gradients()), self.split(self.inputs(role))

    def norms(self, roles: Collection[str]) -> Tensor:
        parts = []
        for role in roles:
            factors = self.factors(role)
            if factors is None:
                parts.append(row_norms(promoted(self.split(self.gate_gradients())).sum(1)))
            else:
                parts.append(factor_norms(*factors))
        return across(parts)

    def instances(self, role: str, first: int, last: int) -> Tensor:
        factors = self.factors(role)
        if factors is None:
            return self.split(self.gate_gradients())[first:last].sum(1)
        left, right = (factor[first:last] for factor in factors)
        return torch.bmm(left.transpose(1, 2), right)

    def weighted(self, gamma: SampleWeights) -> dict[str, Tensor]:
        scaled = gamma.times(self.flat(self.gate_gradients()), self.layout)
        return {
            role: scaled.sum(0) if role.startswith("bias") else torch.mm(scaled.t(), self.inputs(role).flatten(0, 1))
            for role in self.slots
        }

    def drop(self, keep: Tensor) -> None:
        self.gates = self.masked(self.gate_gradients(), keep)
        self.start = self.masked(self.start.reshape(1, *self.out.shape[1:]).expand_as(self.out), keep)[0]
        self.x, self.out = self.masked(self.x, keep), self.masked(self.out, keep)


def read_lstm(node: Node, slots: dict[int, Slot], n: int) -> Use | None:
    """Operands 1 … 4: weights and biases of one layer and direction, read whole."""
    plain = all(slot.whole and not slot.transposed and not slot.reshaped for slot in slots.values())
    lstm = node._saved_mode == 2 and set(slots) <= set(OPERANDS)
    return LSTMUse(node, {OPERANDS[i]: slot for i, slot in slots.items()}, n) if plain and lstm else None
