"""Metrics of all members on a whole split."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from clipbench.data.base import Batch
from clipbench.training import evaluation
from clipbench.training.together.batches import flat
from clipbench.training.together.estimators import Engine, StackEngine
from clipbench.training.together.members import Members

ROWS = 128  # samples of each member at a time: what they leave between the layers stays in the cache


@torch.no_grad()
def evaluate(
    members: Members, engine: Engine, split: str, wanted: Sequence[bool], asked: evaluation.Asked = lambda: False
) -> dict[str, list[float]]:
    """Mean of each of the task's metrics over all samples of `split`, member by member; NaN for those not `wanted`.

    The models are in evaluation mode during the call and in training mode afterwards; sums are float64.
    Raises Abandoned, before the next batch, where `asked` says so.
    """
    if isinstance(engine, StackEngine):
        return _on_stack(members, engine, split, asked)
    task, size = members.first.dataset.task, members.first.options.eval_batch_size
    found = [
        evaluation.evaluate(setup.model, setup.data, task, split, size, asked) if want else {}
        for setup, want in zip(members.setups, wanted, strict=True)
    ]
    names = next(each for each in found if each)
    return {name: [each.get(name, float("nan")) for each in found] for name in names}


def _on_stack(members: Members, engine: StackEngine, split: str, asked: evaluation.Asked) -> dict[str, list[float]]:
    size = min(ROWS, members.first.options.eval_batch_size)
    own = {id(setup.data): setup.data for setup in members.setups}
    which = torch.tensor([list(own).index(id(setup.data)) for setup in members.setups], device=members.device)
    sums: dict[str, Tensor] = {}
    count = 0
    batches = zip(*(data.evaluation(split, size) for data in own.values()), strict=True)
    for parts in evaluation.until_asked(batches, asked):
        fields = [None if part[0] is None else torch.stack(part) for part in zip(*parts, strict=True)]
        if len(own) > 1:
            fields = [None if field is None else field.index_select(0, which) for field in fields]
        batch = Batch(*fields)  # type: ignore[arg-type]  # only the noise may be None, and stays so
        outputs = engine.outputs(batch.inputs)
        count += outputs.shape[1]
        for name, values in engine.task.metrics(outputs.flatten(0, 1), flat(batch, len(members))).items():
            total = values.double().view(outputs.shape[:2]).sum(1)
            sums[name] = sums[name] + total if name in sums else total
    return {name: [each / count for each in total.tolist()] for name, total in sums.items()}
