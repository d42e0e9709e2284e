"""Stacks of linear layers, as multilayer perceptrons are: forward and backward of all members by batched products."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, fx, nn

from clipbench.training.together.gradients import Gradients, LayerGradient


class Linear(NamedTuple):
    """One linear layer: the names of its weight and, if there is one, its bias, and what follows it."""

    weight: str
    bias: str | None
    activation: str | None


class Pass(NamedTuple):
    """What a forward left: the inputs of every layer (R, n, in), and the outputs (R, n, out)."""

    inputs: list[Tensor]
    outputs: Tensor


def _relu_backward(delta: Tensor, outputs: Tensor) -> Tensor:
    return torch.ops.aten.threshold_backward(delta, outputs, 0)


def _tanh_backward(delta: Tensor, outputs: Tensor) -> Tensor:
    return torch.ops.aten.tanh_backward(delta, outputs)


# Forward in place, and backward from the outputs; autograd's own kernels, so that NaN goes the same way.
ACTIVATIONS: dict[type[nn.Module], tuple[Callable[[Tensor], Tensor], Callable[[Tensor, Tensor], Tensor]]] = {
    nn.ReLU: (torch.relu_, _relu_backward),
    nn.Tanh: (torch.tanh_, _tanh_backward),
}


class Stack:
    """A model that is a chain of linear layers, each with at most one activation after it."""

    def __init__(self, layers: list[Linear], activations: dict[str, type[nn.Module]]) -> None:
        self.layers, self.activations = layers, activations

    @classmethod
    def of(cls, model: nn.Module) -> Stack | None:
        """The model's stack; None where it is not one."""
        chain = _chain(model)
        if chain is None:
            return None
        layers: list[Linear] = []
        activations: dict[str, type[nn.Module]] = {}
        for name, module in chain:
            if isinstance(module, nn.Flatten):
                if layers or module.start_dim != 1 or module.end_dim != -1:
                    return None
            elif type(module) is nn.Linear:
                layers.append(Linear(f"{name}.weight", f"{name}.bias" if module.bias is not None else None, None))
            elif type(module) in ACTIVATIONS and layers and layers[-1].activation is None:
                layers[-1] = layers[-1]._replace(activation=name)
                activations[name] = type(module)
            elif type(module) is not nn.Identity:
                return None
        names = [name for name, _ in model.named_parameters()]
        own = [name for layer in layers for name in (layer.weight, layer.bias) if name is not None]
        trained = all(parameter.requires_grad for parameter in model.parameters())
        return cls(layers, activations) if sorted(own) == sorted(names) and trained else None

    def forward(self, weights: dict[str, Tensor], inputs: Tensor) -> Pass:
        """inputs: (R, n, …), or (1, n, …) where all members see the same samples."""
        members = len(next(iter(weights.values())))
        hidden = inputs.flatten(2) if inputs.dim() > 3 else inputs
        kept = []
        for layer in self.layers:
            hidden = hidden.expand(members, -1, -1)
            kept.append(hidden)
            weight = weights[layer.weight].mT
            if layer.bias is None:
                hidden = torch.bmm(hidden, weight)
            else:
                hidden = torch.baddbmm(weights[layer.bias][:, None], hidden, weight)
            if layer.activation is not None:
                hidden = ACTIVATIONS[self.activations[layer.activation]][0](hidden)
        return Pass(kept, hidden)

    def backward(self, weights: dict[str, Tensor], run: Pass, delta: Tensor) -> list[Rows]:
        """Each layer's rows, from the losses' derivatives (R, n, out) at the outputs; the last layer first."""
        found = []
        outputs = run.outputs
        for place in reversed(range(len(self.layers))):
            layer, inputs = self.layers[place], run.inputs[place]
            if layer.activation is not None:
                delta = ACTIVATIONS[self.activations[layer.activation]][1](delta, outputs)
            found.append(Rows(layer, inputs, delta))
            if place:
                delta = torch.bmm(delta, weights[layer.weight])
                outputs = inputs
        return found


class Rows(NamedTuple):
    """A layer's gradient sample by sample: that of the weight is delta_kᵀ inputs_k, that of the bias delta_k."""

    layer: Linear
    inputs: Tensor
    delta: Tensor

    def norms(self) -> Tensor:
        """Each sample's norm over the layer, (R, n)."""
        inputs = torch.linalg.vector_norm(self.inputs, dim=2)
        if self.layer.bias is not None:
            inputs = torch.hypot(inputs, torch.ones_like(inputs))
        return inputs * torch.linalg.vector_norm(self.delta, dim=2)

    def times(self, factor: Tensor) -> Rows:
        """Every sample's gradient times its factor (R, n)."""
        return self._replace(delta=self.delta * factor[..., None])

    def without(self, dropped: Tensor) -> Rows:
        """Zeros in the place of some samples (R, n)."""
        out = dropped[..., None]
        return self._replace(inputs=self.inputs.masked_fill(out, 0), delta=self.delta.masked_fill(out, 0))


def summed(layers: Sequence[Rows]) -> Gradients:
    """The sums over the samples, by parameter."""
    found: Gradients = {}
    for layer, inputs, delta in layers:
        found[layer.weight] = LayerGradient((inputs, delta))
        if layer.bias is not None:
            found[layer.bias] = LayerGradient(formed=delta.sum(1))
    return found


def _chain(model: nn.Module) -> list[tuple[str, nn.Module]] | None:
    """The model's modules in the order in which they are called, each once and on the last one's result, or None."""
    try:
        graph = fx.symbolic_trace(model).graph
    except Exception:  # a model that cannot be traced is not a stack, whatever the tracer has to say of it
        return None
    modules = dict(model.named_modules())
    chain: list[tuple[str, nn.Module]] = []
    last: fx.Node | None = None
    for node in graph.nodes:
        if node.op == "placeholder" and last is None:
            last = node
        elif node.op == "call_module" and node.args == (last,) and not node.kwargs:
            chain.append((str(node.target), modules[str(node.target)]))
            last = node
        elif node.op == "output" and node.args == (last,):
            continue
        else:
            return None
    names = [name for name, _ in chain]
    return chain if len(set(names)) == len(names) else None
