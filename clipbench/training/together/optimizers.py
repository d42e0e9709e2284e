"""Optimizers of all members at once: torch's SGD, Adam and AdamW with one rate, momentum, … a member.

Any other optimizer steps each member's own parameters, one member after the other (`Each`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from clipbench.training.optimizers import MatrixOptimizer
from clipbench.training.together.gradients import Gradients
from clipbench.training.together.members import Members
from clipbench.training.together.numbers import Number, per_member

Groups = Sequence[dict[str, Any]]  # of each member, the one param_group that an optimizer has


class Optimizers(Protocol):
    """The members' optimizers as one. `rates` are the factors on every member's own learning rate."""

    def step(self, gradients: Gradients, rates: Sequence[float]) -> None: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class _Stacked:
    """What the batched forms share: their layers, and every member's numbers."""

    def __init__(self, groups: Groups, members: Members, names: Sequence[str]) -> None:
        self.weights = {name: members.weights[name] for name in names}
        self._groups = groups
        self._numbers: dict[tuple[str, int], Number] = {}
        self._factors: tuple[float, ...] = ()
        self._rates: dict[int, Number] = {}
        self.state: dict[str, Tensor] = {}

    def number(self, key: str, like: Tensor) -> Number:
        """The members' numbers of that name."""
        kept = key, like.dim()
        if kept not in self._numbers:
            self._numbers[kept] = per_member([group[key] for group in self._groups], like)
        return self._numbers[kept]

    def rate(self, like: Tensor, rates: Sequence[float]) -> Number:
        """The learning rates times the schedules' factors; kept as long as these do not change."""
        if self._factors != tuple(rates):
            self._factors, self._rates = tuple(rates), {}
        if like.dim() not in self._rates:
            values = [group["lr"] * rate for group, rate in zip(self._groups, rates, strict=True)]
            self._rates[like.dim()] = per_member(values, like)
        return self._rates[like.dim()]

    def buffer(self, kind: str, name: str) -> Tensor:
        """The state `kind` of a layer, zeros at first."""
        key = f"{kind}/{name}"
        if key not in self.state:
            self.state[key] = torch.zeros_like(self.weights[name])
        return self.state[key]

    def state_dict(self) -> dict[str, Any]:
        return dict(self.state)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.state = dict(state)


def _descend(weight: Tensor, update: Tensor, rate: Number) -> None:
    """weight ← weight − rate · update."""
    if isinstance(rate, Tensor):
        weight.addcmul_(update, rate, value=-1)
    else:
        weight.add_(update, alpha=-rate)


class Sgd(_Stacked):
    """SGD: m ← μ m + g + λ θ, θ ← θ − lr m; with Nesterov's θ ← θ − lr (g + λ θ + μ m)."""

    def step(self, gradients: Gradients, rates: Sequence[float]) -> None:
        nesterov = self._groups[0]["nesterov"]
        for name, weight in self.weights.items():
            if name not in gradients:
                continue
            layer, rate = gradients[name], self.rate(weight, rates)
            decay, momentum = self.number("weight_decay", weight), self.number("momentum", weight)
            if isinstance(momentum, float) and not momentum:
                _descend(weight, _decayed(layer.formed, weight, decay), rate)
                continue
            kept = self.buffer("momentum", name)
            if layer.rows is not None and not layer.is_formed and not nesterov:
                inputs, delta = layer.rows
                if isinstance(momentum, Tensor):
                    kept.mul_(momentum).baddbmm_(delta.mT, inputs)
                else:
                    kept.baddbmm_(delta.mT, inputs, beta=momentum)
                _add_decay(kept, weight, decay)
                _descend(weight, kept, rate)
                continue
            gradient = _decayed(layer.formed, weight, decay)
            kept.mul_(momentum).add_(gradient)
            _descend(weight, gradient + momentum * kept if nesterov else kept, rate)


def _add_decay(target: Tensor, weight: Tensor, decay: Number) -> None:
    if isinstance(decay, Tensor):
        target.addcmul_(weight, decay)
    elif decay:
        target.add_(weight, alpha=decay)


def _decayed(gradient: Tensor, weight: Tensor, decay: Number) -> Tensor:
    """g + λ θ."""
    if isinstance(decay, float) and not decay:
        return gradient
    return gradient + decay * weight


class AdamNumbers(NamedTuple):
    """Adam's numbers at one step, for tensors of one number of axes."""

    first: Number  # 1 − β₁
    second: Number  # β₂
    rest: Number  # 1 − β₂
    root: Number  # √(1 − β₂ᵗ)
    size: Number  # −lr / (1 − β₁ᵗ)


class Adam(_Stacked):
    """Adam (weight decay in the gradient) and, with `decoupled_weight_decay`, AdamW; as torch.optim.Adam."""

    def __init__(self, groups: Groups, members: Members, names: Sequence[str]) -> None:
        super().__init__(groups, members, names)
        self.count = 0

    def step(self, gradients: Gradients, rates: Sequence[float]) -> None:
        self.count += 1
        decoupled = self._groups[0].get("decoupled_weight_decay", False)
        numbers: dict[int, AdamNumbers] = {}
        for name, weight in self.weights.items():
            if name not in gradients:
                continue
            gradient, decay = gradients[name].formed, self.number("weight_decay", weight)
            if not decoupled:
                gradient = _decayed(gradient, weight, decay)
            elif isinstance(decay, Tensor) or decay:
                weight.mul_(1 - self.rate(weight, rates) * decay)
            if weight.dim() not in numbers:
                numbers[weight.dim()] = self._adam_numbers(weight, rates)
            self._update(name, weight, gradient, numbers[weight.dim()])

    def _adam_numbers(self, like: Tensor, rates: Sequence[float]) -> AdamNumbers:
        pairs = [group["betas"] for group in self._groups]
        size = [
            -group["lr"] * rate / (1 - group["betas"][0] ** self.count)
            for group, rate in zip(self._groups, rates, strict=True)
        ]
        return AdamNumbers(
            per_member([1 - first for first, _ in pairs], like),
            per_member([second for _, second in pairs], like),
            per_member([1 - second for _, second in pairs], like),
            per_member([math.sqrt(1 - second**self.count) for _, second in pairs], like),
            per_member(size, like),
        )

    def _update(self, name: str, weight: Tensor, gradient: Tensor, numbers: AdamNumbers) -> None:
        mean, square = self.buffer("mean", name), self.buffer("square", name)
        mean.lerp_(gradient, numbers.first)
        square.mul_(numbers.second)
        if isinstance(numbers.rest, Tensor):
            square.addcmul_(gradient * numbers.rest, gradient)
        else:
            square.addcmul_(gradient, gradient, value=numbers.rest)
        length = square.sqrt().div_(numbers.root).add_(self.number("eps", weight))
        if isinstance(numbers.size, Tensor):
            weight.addcmul_(torch.div(mean, length, out=length), numbers.size)
        else:
            weight.addcdiv_(mean, length, value=numbers.size)

    def state_dict(self) -> dict[str, Any]:
        return {**self.state, "count": self.count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.count = state["count"]
        self.state = {key: value for key, value in state.items() if key != "count"}


class Both:
    """MatrixOptimizer: one optimizer for some layers, another for the rest."""

    def __init__(self, parts: Sequence[Optimizers]) -> None:
        self.parts = list(parts)

    def step(self, gradients: Gradients, rates: Sequence[float]) -> None:
        for part in self.parts:
            part.step(gradients, rates)

    def state_dict(self) -> dict[str, Any]:
        return {str(place): part.state_dict() for place, part in enumerate(self.parts)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for place, part in enumerate(self.parts):
            part.load_state_dict(state[str(place)])


class Each:
    """Each member's own optimizer."""

    def __init__(self, optimizers: Sequence[Any], members: Members) -> None:
        self.optimizers, self.members = list(optimizers), members
        self._rates = [[group["lr"] for group in optimizer.param_groups] for optimizer in optimizers]

    def step(self, gradients: Gradients, rates: Sequence[float]) -> None:
        self.members.lend({name: layer.formed for name, layer in gradients.items()})
        for optimizer, own, rate in zip(self.optimizers, self._rates, rates, strict=True):
            for group, lr in zip(optimizer.param_groups, own, strict=True):
                group["lr"] = lr * rate
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.members.take_back()

    def state_dict(self) -> dict[str, Any]:
        return {"members": [optimizer.state_dict() for optimizer in self.optimizers]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for optimizer, own in zip(self.optimizers, state["members"], strict=True):
            optimizer.load_state_dict(own)


FORMS: dict[type, type[Sgd] | type[Adam]] = {
    torch.optim.SGD: Sgd,
    torch.optim.Adam: Adam,
    torch.optim.AdamW: Adam,
}
# Options of torch's that the forms do not know; they must be off, as in clipbench.training.optimizers.
OFF = ("dampening", "maximize", "amsgrad")


def stacked_optimizers(optimizers: Sequence[Any], members: Members, say: Callable[[str], None]) -> Optimizers:
    """The members' optimizers as one; says where they step one after the other."""
    if all(type(each) is MatrixOptimizer for each in optimizers):
        for each in optimizers:
            each.follow()
        names = list(optimizers[0].parts)
        return Both([stacked_optimizers([each.parts[name] for each in optimizers], members, say) for name in names])
    form = FORMS.get(type(optimizers[0]))
    if form is not None and all(_plain(each) for each in optimizers):
        groups = [each.param_groups[0] for each in optimizers]
        return form(groups, members, _names(groups[0]["params"], members))
    say(f"together: {type(optimizers[0]).__name__} steps member by member (it has no batched form)")
    return Each(optimizers, members)


def _plain(optimizer: torch.optim.Optimizer) -> bool:
    groups = optimizer.param_groups
    return len(groups) == 1 and not any(groups[0].get(option) for option in OFF)


def _names(parameters: Sequence[nn.Parameter], members: Members) -> list[str]:
    own = {id(parameter): name for name, parameter in members.parameters[0].items()}
    return [own[id(parameter)] for parameter in parameters]
