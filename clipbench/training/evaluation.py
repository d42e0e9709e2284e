"""Metrics of a model on a whole split."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import torch
from torch import Tensor, nn

from clipbench.data.base import Data, Task

T = TypeVar("T")
Asked = Callable[[], bool]


class Abandoned(Exception):
    """A job was asked to stop in the middle of an evaluation."""


def until_asked(batches: Iterable[T], asked: Asked) -> Iterator[T]:
    """`batches`, before each of which `asked` says whether to go no further. Raises Abandoned then."""
    for batch in batches:
        if asked():
            raise Abandoned
        yield batch


def evaluate(
    model: nn.Module, data: Data, task: Task, split: str, batch_size: int, asked: Asked = lambda: False
) -> dict[str, float]:
    """Mean of each of the task's metrics over all samples of `split` (train is not augmented here).

    The model is in evaluation mode during the call and in training mode afterwards; sums are float64. Raises
    Abandoned, before the next batch, where `asked` says so.
    """
    model.eval()
    sums: dict[str, Tensor] = {}
    count = 0
    with torch.no_grad():
        for batch in until_asked(data.evaluation(split, batch_size), asked):
            count += len(batch.targets)
            for name, values in task.metrics(at_least_single(model(batch.inputs)), batch).items():
                total = values.double().sum()
                sums[name] = sums[name] + total if name in sums else total
    model.train()
    return {name: float(total) / count for name, total in sums.items()}


def at_least_single(outputs: Tensor) -> Tensor:
    """Half-precision outputs (autocast) widened to float32, others as they are."""
    return outputs.float() if outputs.dtype in (torch.bfloat16, torch.float16) else outputs
