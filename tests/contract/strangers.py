"""Classes that each break one promise of the bench."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from clipbench.clipping import NormClip
from clipbench.data import HeavyTailed
from clipbench.data.base import Batch
from clipbench.models import MLP


class DoesNothing(NormClip):
    def __call__(self, named: Any) -> Any:
        kept = [(p, p.grad.clone()) for _, p in named]
        stats = super().__call__(named)
        for parameter, grad in kept:
            parameter.grad.copy_(grad)
        return stats


class NotTheIdentity(NormClip):
    def __call__(self, named: Any) -> Any:
        stats = super().__call__(named)
        for _, parameter in named:
            parameter.grad.mul_(0.999)
        return stats


class Draws(NormClip):
    def __call__(self, named: Any) -> Any:
        stats = super().__call__(named)
        for _, parameter in named:
            parameter.grad.mul_(1 + stats.clipped_fraction * 1e-3 * float(torch.randn(1, generator=ENTROPY)))
        return stats


ENTROPY = torch.Generator()


class Reads(NormClip):
    def __call__(self, named: Any) -> Any:
        stats = super().__call__(named)
        stats.clipped_fraction.item()
        return stats


class Forgets(NormClip):
    def __init__(self, threshold: float) -> None:
        super().__init__(threshold)
        self.calls = 0

    def __call__(self, named: Any) -> Any:
        self.calls += 1
        stats = super().__call__(named)
        for _, parameter in named:
            parameter.grad.mul_(torch.where(stats.clipped_fraction > 0, 1 / self.calls, 1.0))
        return stats


class DividesByZero(NormClip):
    def __call__(self, named: Any) -> Any:
        for _, parameter in named:
            norm = parameter.grad.norm()
            parameter.grad.mul_(norm / norm)
        return super().__call__(named)


class Raises(NormClip):
    def __call__(self, named: Any) -> Any:
        raise RuntimeError("the rule is unfinished")


class Unshaped(MLP):
    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return super().forward(inputs)[:, :1]


class Together(MLP):
    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return super().forward(inputs - inputs.mean(0))


class Unseeded(MLP):
    def __init__(self, spec: Any) -> None:
        super().__init__(spec)
        for parameter in self.parameters():
            nn.init.normal_(parameter, generator=ENTROPY)


class Detached(MLP):
    def __init__(self, spec: Any) -> None:
        super().__init__(spec)
        self.spare = nn.Parameter(torch.zeros(3))


class _Data:
    def __init__(self, data: Any) -> None:
        self.data, self.sizes = data, data.sizes

    def batch(self, indices: torch.Tensor, generator: torch.Generator) -> Batch:
        return self.data.batch(torch.randperm(9, generator=ENTROPY)[: len(indices)], generator)

    def evaluation(self, split: str, size: int) -> Any:
        yield next(iter(self.data.evaluation(split, size)))


class Careless(HeavyTailed):
    """Batches that do not repeat, and evaluations of one batch."""

    def load(self, *given: Any, **named: Any) -> Any:
        return _Data(super().load(*given, **named))
