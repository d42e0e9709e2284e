"""What a run does: training (`Trainer`) or a study, behind one protocol."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import torch

from clipbench.config import schema
from clipbench.runs.record import Row
from clipbench.training.clock import Clock


class Work(Protocol):
    """Work in `steps` steps, `done` of them done, that can stop at any of them and go on in another process."""

    done: int
    rows: list[Row]
    status: str
    clock: Clock
    stopping: bool
    save_due: bool

    @property
    def steps(self) -> int:
        """Steps of the whole run."""
        ...

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        ...

    @property
    def precision(self) -> str:
        """The precision it computes in."""
        ...

    @property
    def samples_per_step(self) -> int:
        """Samples in one step, 0 where that means nothing."""
        ...

    @property
    def parameters(self) -> int:
        """How many numbers are trained."""
        ...

    @property
    def data(self) -> Mapping[str, Any]:
        """Where its data come from."""
        ...

    def run(self) -> Iterator[list[Row]]:
        """Yields new rows now and then, until the end (`status` ok or diverged) or until `stopping` is set.

        Where `save_due` is set when it yields, a checkpoint is wanted.
        """
        ...

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values from which `load_state_dict` goes on bit for bit."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state`."""
        ...


def build_work(config: Mapping[str, Any], options: schema.Options) -> Work:
    """The study of the config, or the trainer where it has none. Raises ConfigError for what does not fit."""
    from clipbench.training.setup import build, set_numerics
    from clipbench.training.trainer import Trainer

    study = config.get("study", {})
    if "_target_" not in study:
        return Trainer(build(config, options))
    given: dict[str, Any] = {"seed": options.seed}
    if schema.accepts(study["_target_"], "setup"):
        given["setup"] = build(config, options)
    set_numerics(options)
    work: Work = schema.instantiate(study, "study", **given)
    return work
