"""A stop is obeyed within a batch of an evaluation; what a fresh trainer goes on from ends bit for bit the same."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from clipbench.data.base import Batch, Data
from clipbench.runs.request import Request
from clipbench.training.setup import build
from clipbench.training.together.building import build_all
from clipbench.training.together.trainer import TogetherTrainer
from clipbench.training.trainer import Trainer
from tests.training.together.small import family

Either = Trainer | TogetherTrainer
WORDS = ["steps=20", "eval_every=10", "log_every=5", "checkpoint_every=10", "eval_batch_size=10"]  # 5 batches a split


def lone(requests: list[Request]) -> Either:
    return Trainer(build(requests[0].config, requests[0].options))


def batch(requests: list[Request]) -> Either:
    return TogetherTrainer(build_all(requests), lambda line: None)


def rows_of(trainer: Either) -> list[dict[str, Any]]:
    """All rows, without what is a time."""
    members = [trainer] if isinstance(trainer, Trainer) else trainer.members
    return [
        {key: value for key, value in row.items() if key != "train_seconds"}
        for member in members
        for row in member.rows
        if not row["metric"].endswith("_per_second")
    ]


def weights_of(trainer: Either) -> dict[str, torch.Tensor]:
    return trainer.setup.model.state_dict() if isinstance(trainer, Trainer) else dict(trainer.stacked.weights)


class Watched:
    """The evaluation's batches of `trainer`, counted; at batch `at`, counted from 1, it is asked to stop."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, trainer: Either, at: int) -> None:
        self.seen = 0
        kind = type(trainer.setup.data if isinstance(trainer, Trainer) else trainer.first.data)
        genuine = kind.evaluation

        def evaluation(data: Data, split: str, size: int) -> Iterator[Batch]:
            for found in genuine(data, split, size):
                self.seen += 1
                if self.seen == at:
                    trainer.stop()
                yield found

        monkeypatch.setattr(kind, "evaluation", evaluation)


CASES = [
    ("single", at) for at in (1, 3, 8, 13, 18, 23, 28)
]  # in each split of the first, a middle, the last evaluation
CASES += [("tune", at) for at in (3, 8, 13)]  # of one split each


@pytest.mark.parametrize(("role", "at"), CASES)
@pytest.mark.parametrize("make", [lone, batch])
def test_a_stop_within_an_evaluation_ends_it_and_a_resume_makes_it_whole(
    make: Callable[[list[Request]], Either], role: str, at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = family("norm_clip", *WORDS, f"role={role}")
    undisturbed = make(requests)
    for _ in undisturbed.run():
        pass
    with monkeypatch.context() as patch:
        stopped = make(requests)
        watched = Watched(patch, stopped, at)
        for _ in stopped.run():
            pass
        assert watched.seen == at, "not one batch more"
    assert stopped.status == "running"
    assert stopped.done == 10 * ((at - 1) // (5 if role == "tune" else 10))
    state = copy.deepcopy(stopped.state_dict())
    resumed = make(requests)
    resumed.load_state_dict(state)
    for _ in resumed.run():
        pass
    assert resumed.status == "ok"
    assert rows_of(resumed) == rows_of(undisturbed)
    for name, value in weights_of(undisturbed).items():
        assert torch.equal(weights_of(resumed)[name], value), name


@pytest.mark.parametrize("make", [lone, batch])
def test_a_resume_after_a_whole_evaluation_makes_none_again(
    make: Callable[[list[Request]], Either], monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = family("norm_clip", *WORDS)
    first = make(requests)
    for _ in first.run():
        if first.checkpoint_due:
            first.stop()
    assert first.done == 10
    again = make(requests)
    again.load_state_dict(copy.deepcopy(first.state_dict()))
    watched = Watched(monkeypatch, again, at=11)  # in an evaluation beyond the last one's two splits: there is none
    for _ in again.run():
        pass
    assert (again.status, watched.seen) == ("ok", 10)
