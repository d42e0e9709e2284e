"""Models and estimators without a batched form: each member's own, one after the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from clipbench.training.together.estimators import Engine, Estimates, StackEngine, stack_rule
from clipbench.training.together.gradients import LayerGradient
from clipbench.training.together.members import Members
from clipbench.training.together.stack import Stack
from clipbench.training.trainer import Trainer


class EachEngine:
    """Each member's own model and estimator, with its own random streams."""

    def __init__(self, members: Members) -> None:
        self.members = members
        self.trainers = [Trainer(setup) for setup in members.setups]

    def __call__(self, step: int, draws: Sequence[int]) -> Estimates:
        estimates = []
        with torch.enable_grad():
            for trainer, seed in zip(self.trainers, draws, strict=True):
                trainer.setup.estimator.reseed(seed)
                estimates.append(trainer.setup.estimator(trainer.losses(step), trainer.setup.samples_per_step))
        gradients = {}
        for name in self.members.names:
            parts = [parameters[name].grad for parameters in self.members.parameters]
            found = [part for part in parts if part is not None]
            if len(found) == len(parts):
                gradients[name] = LayerGradient(formed=torch.stack(found))
        self.members.take_back()
        stats = {name: torch.stack([each.stats[name] for each in estimates]) for name in estimates[0].stats}
        return Estimates(gradients, torch.stack([each.loss for each in estimates]), stats)

    def outputs(self, inputs: Tensor) -> Tensor:
        return torch.stack([
            setup.model(inputs[place % len(inputs)]) for place, setup in enumerate(self.members.setups)
        ])  # fmt: skip

    def state_dict(self) -> dict[str, Any]:
        return {
            "estimators": [setup.estimator.state_dict() for setup in self.members.setups],
            "buffers": [dict(setup.model.named_buffers()) for setup in self.members.setups],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for setup, own, buffers in zip(self.members.setups, state["estimators"], state["buffers"], strict=True):
            setup.estimator.load_state_dict(own)
            for name, buffer in setup.model.named_buffers():
                buffer.copy_(buffers[name])


def engine(members: Members, say: Callable[[str], None]) -> Engine:
    """How the members' gradients are made; says where that is done one after the other."""
    stack = Stack.of(members.first.model)
    rule = None if stack is None else stack_rule(members, say)
    if stack is not None and rule is not None:
        return StackEngine(members, stack, rule)
    what, why = (
        (type(members.first.model).__name__, "it is no stack of linear layers")
        if stack is None
        else (type(members.first.estimator).__name__, "it has no batched form")
    )
    say(f"together: {what} goes member by member ({why})")
    return EachEngine(members)
