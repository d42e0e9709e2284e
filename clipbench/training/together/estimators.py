"""The members' gradients and losses, on a stack of linear layers, by the rule of their estimator."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from clipbench.data.base import Batch as Samples
from clipbench.estimators import Batch, Estimator, MicroBatch, PerSample
from clipbench.per_sample import PowerThreshold
from clipbench.per_sample.thresholds import clip_weight
from clipbench.training.together.batches import MemberBatches, flat
from clipbench.training.together.clippers import Clippers, stacked_clippers
from clipbench.training.together.gradients import Gradients, mean
from clipbench.training.together.members import Members
from clipbench.training.together.stack import Pass, Rows, Stack, summed


class Estimates(NamedTuple):
    """Each member's gradients, mean loss (R,) and further figures (R,)."""

    gradients: Gradients
    loss: Tensor
    stats: dict[str, Tensor]


class Engine(Protocol):
    """Makes the gradients of a step for all members."""

    def __call__(self, step: int, draws: Sequence[int]) -> Estimates:
        """draws: the seed from which each member's estimator draws in this step."""
        ...

    def outputs(self, inputs: Tensor) -> Tensor:
        """The models' outputs (R, n, …) for inputs (R, n, …) or (1, n, …)."""
        ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class StackEngine:
    """Forward and backward by batched products; the estimator's rule on the rows of each layer's gradient."""

    def __init__(self, members: Members, stack: Stack, rule: Rule) -> None:
        self.members, self.stack, self.rule = members, stack, rule
        self.batches = MemberBatches(members)
        self.task = members.first.dataset.task

    def __call__(self, step: int, draws: Sequence[int]) -> Estimates:
        batch = self.batches.step(step)
        run = self.stack.forward(self.members.weights, batch.inputs)
        losses, delta = self._losses(run.outputs, batch)
        return self.rule(self, run, losses, delta, draws)

    def _losses(self, outputs: Tensor, batch: Samples) -> tuple[Tensor, Tensor]:
        """Per-sample losses (R, n), and each one's derivative at its outputs (R, n, out)."""
        leaf = outputs.detach().flatten(0, 1).requires_grad_()
        with torch.enable_grad():
            losses = self.task.losses(leaf, flat(batch, len(outputs)))
            (delta,) = torch.autograd.grad(losses.sum(), leaf)
        return losses.detach().view(outputs.shape[:2]), delta.view(outputs.shape)

    def rows(self, run: Pass, delta: Tensor) -> list[Rows]:
        """Each layer's rows of the gradient of Σ losses."""
        return self.stack.backward(self.members.weights, run, delta)

    def gradients(self, rows: Sequence[Rows]) -> Gradients:
        """The sums of the rows, in the model's order."""
        found = summed(rows)
        return {name: found[name] for name in self.members.names}

    def outputs(self, inputs: Tensor) -> Tensor:
        return self.stack.forward(self.members.weights, inputs).outputs

    def state_dict(self) -> dict[str, Any]:
        return self.rule.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.rule.load_state_dict(state)


class Rule(Protocol):
    """An estimator on rows."""

    def __call__(
        self, engine: StackEngine, run: Pass, losses: Tensor, delta: Tensor, draws: Sequence[int]
    ) -> Estimates: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class _Stateless:
    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """There is no state."""


class BatchRule(_Stateless):
    """Batch: the mean over all samples of the step."""

    def __call__(
        self, engine: StackEngine, run: Pass, losses: Tensor, delta: Tensor, draws: Sequence[int]
    ) -> Estimates:
        total = losses.shape[1]
        gradients = engine.gradients(engine.rows(run, delta / total))
        return Estimates(gradients, losses.sum(1) / total, {})


class MicroBatchRule:
    """MicroBatch: each micro-batch's mean gradient is clipped by the inner clipper, then they are averaged."""

    def __init__(self, clippers: Clippers, size: int) -> None:
        self.clippers, self.size = clippers, size

    def __call__(
        self, engine: StackEngine, run: Pass, losses: Tensor, delta: Tensor, draws: Sequence[int]
    ) -> Estimates:
        self.clippers.reseed(draws)
        parts, clipped = [], []
        for start in range(0, losses.shape[1], self.size):
            own = slice(start, start + self.size)
            part = Pass([inputs[:, own] for inputs in run.inputs], run.outputs[:, own])
            gradients = engine.gradients(engine.rows(part, delta[:, own] / self.size))
            clipped.append(self.clippers(gradients).clipped_fraction)
            parts.append(gradients)
        stats = {"micro_batch_clipped_fraction": torch.stack(clipped).mean(0)}
        return Estimates(mean(parts), losses.sum(1) / losses.shape[1], stats)

    def state_dict(self) -> dict[str, Any]:
        return {"clipper": self.clippers.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.clippers.load_state_dict(state["clipper"])


class PerSampleRule:
    """PerSample: sample k's gradient times its weight, min(1, τ_k/‖g_k‖) as a rule, the norm over all layers.

    What is not finite is dropped. Each member's own threshold and weight are called, on its own norms.
    """

    def __init__(self, estimators: Sequence[PerSample]) -> None:
        self.estimators = list(estimators)

    def __call__(
        self, engine: StackEngine, run: Pass, losses: Tensor, delta: Tensor, draws: Sequence[int]
    ) -> Estimates:
        total = losses.shape[1]
        rows = engine.rows(run, delta)
        norms = torch.stack([layer.norms() for layer in rows]).square().sum(0).sqrt()
        tau = self._tau(norms)
        keep = norms < torch.inf  # false for NaN too
        weight = torch.where(keep, self._weight(norms, tau), 0.0) / total
        if norms.device.type != "cpu" or not math.isfinite(norms.sum().item()):
            rows = [layer.without(~keep) for layer in rows]
        gradients = engine.gradients([layer.times(weight) for layer in rows])
        stats = {
            "sample_clipped_fraction": (norms > tau).to(norms.dtype).mean(1),
            "sample_norm": _finite_mean(norms),
            "dropped": total - keep.sum(1),
        }
        return Estimates(gradients, _finite_mean(losses), stats)

    def _tau(self, norms: Tensor) -> Tensor:
        """(R, n), from each member's own rule."""
        k = torch.arange(1, norms.shape[1] + 1, device=norms.device, dtype=norms.dtype)
        values = []
        for estimator, own in zip(self.estimators, norms.unbind(), strict=True):
            threshold = estimator.clipper.threshold
            values.append(threshold(k, own) if callable(threshold) else torch.full_like(own, float(threshold)))
        return torch.stack(values)

    def _weight(self, norms: Tensor, tau: Tensor) -> Tensor:
        """(R, n), from each member's own rule."""
        rules = [estimator.clipper.weight for estimator in self.estimators]
        if all(rule is clip_weight for rule in rules):
            return clip_weight(norms, tau)
        return torch.stack([rule(*own) for rule, own in zip(rules, zip(norms, tau, strict=True), strict=True)])

    def state_dict(self) -> dict[str, Any]:
        return {"members": [estimator.state_dict() for estimator in self.estimators]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for estimator, own in zip(self.estimators, state["members"], strict=True):
            estimator.load_state_dict(own)


def _finite_mean(values: Tensor) -> Tensor:
    """Each member's mean over its finite values, NaN where there are none."""
    finite = values.isfinite()
    return torch.where(finite, values, 0.0).sum(1) / finite.sum(1)


def stack_rule(members: Members, say: Callable[[str], None]) -> Rule | None:
    """The members' estimators on rows; None where they have no such form (exact types: a subclass may differ)."""
    estimators: list[Estimator] = [setup.estimator for setup in members.setups]
    kind = type(estimators[0])
    if kind is Batch:
        return BatchRule()
    if kind is MicroBatch:
        inner = [estimator.clipper for estimator in estimators if isinstance(estimator, MicroBatch)]
        return MicroBatchRule(stacked_clippers(inner, members, say), members.first.options.batch_size)
    if kind is PerSample:
        own = [estimator for estimator in estimators if isinstance(estimator, PerSample)]
        # A threshold that follows past norms is told those of each micro-batch, not of the whole step.
        follows = any(
            callable(each.clipper.threshold) and type(each.clipper.threshold) is not PowerThreshold for each in own
        )
        parts = members.first.options.accumulation
        if all(each.clipper.nonfinite == "drop" for each in own) and (parts == 1 or not follows):
            return PerSampleRule(own)
    return None
