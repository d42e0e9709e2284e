"""The loop over the steps of a batch of runs: what clipbench.training.trainer does for one, for all members at once."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor

from clipbench.data.sums import data_sum
from clipbench.runs import memory
from clipbench.runs.job import Row
from clipbench.training.clock import Clock
from clipbench.training.evaluation import Abandoned
from clipbench.training.seeding import derive
from clipbench.training.setup import Setup
from clipbench.training.together.clippers import Each as EachClipper
from clipbench.training.together.clippers import stacked_clippers
from clipbench.training.together.estimators import StackEngine
from clipbench.training.together.evaluation import evaluate
from clipbench.training.together.figures import MemberFigures
from clipbench.training.together.mapped import engine
from clipbench.training.together.member import Member
from clipbench.training.together.members import Members
from clipbench.training.together.noise import MemberNoise
from clipbench.training.together.optimizers import stacked_optimizers

Say = Callable[[str], None]


class TogetherTrainer:
    """Trains `setups`, which differ in numbers only, side by side.

    A member whose loss is not finite has diverged: it gets no more rows, and its slot goes on without meaning. The
    others do not see it, since no product mixes members. Seconds are the program's; a member's are its share.
    """

    def __init__(self, setups: Sequence[Setup], say: Say = print, clock: Clock | None = None) -> None:
        self.stacked = Members(setups)
        self.first = self.stacked.first
        self.options, self.device, self.steps = self.first.options, self.first.device, self.first.steps
        self.clock = clock or Clock(self.device)
        per_epoch = self.first.data.sizes["train"] // self.first.samples_per_step
        own = {id(setup.data): setup for setup in self.stacked.setups}
        about = {key: one.dataset.provenance | {"sum": data_sum(one.dataset, one.data)} for key, one in own.items()}
        self.members = [
            Member(setup, len(self.stacked), self.clock, per_epoch, about[id(setup.data)])
            for setup in self.stacked.setups
        ]
        self.engine = engine(self.stacked, say)
        self.noise = None if self.first.noise is None else MemberNoise(self.stacked)
        self.clippers = stacked_clippers([setup.clipper for setup in self.stacked.setups], self.stacked, say)
        self.optimizers = stacked_optimizers([setup.optimizer for setup in self.stacked.setups], self.stacked, say)
        self.figures = MemberFigures()
        self.done = 0
        self._stopping = self._abandoned = False
        self._last_evaluation = 0.0

    @property
    def status(self) -> str:
        """ "running" as long as a member is, then "ok"."""
        return "running" if any(member.status == "running" for member in self.members) else "ok"

    @property
    def rows(self) -> list[Row]:
        """Those of the first member that is still running, for a progress bar."""
        return next((member.rows for member in self.members if member.status == "running"), [])

    def run(self) -> Iterator[list[Row]]:
        """Train until no member runs any more or until `stop`, yielding the new rows of all at every boundary.

        An evaluation that a stop left unfinished is made up for first.
        """
        for setup in self.stacked.setups:
            setup.model.train()
        memory.forget_peak(self.device)
        self._last_evaluation = time.monotonic()
        if self._evaluation_owed() and (rows := self._evaluation_rows()):
            yield rows
        if self.done >= self.steps and not self._abandoned:
            self._end()
        while self.status == "running" and self.done < self.steps and not self._stopping:
            self.clock.start()
            steps = self._to_boundary()
            self.clock.stop(steps)
            rows = self._due_rows()
            if self.done >= self.steps and not self._abandoned:
                self._end()
            yield rows

    def stop(self) -> None:
        """Let `run` end after the step, or the evaluation's batch, under way."""
        self._stopping = True

    @torch.no_grad()
    def step(self, step: int) -> dict[str, Tensor]:
        """One optimizer step of all members, counted from 0; the step's figures (R,)."""
        setups = self.stacked.setups
        factors = [setup.schedule.factor(step, self.steps) for setup in setups]
        draws = [derive(setup.options.seed, "clipper", step) for setup in setups] if self._draws else [0] * len(setups)
        self.clippers.reseed(draws)
        estimates = self.engine(step, [draw + 1 for draw in draws])
        gradients = estimates.gradients
        if self.noise is not None:
            self.noise(gradients, step)
        clip = self.clippers(gradients)
        figures = {"loss": estimates.loss, "clipped_fraction": clip.clipped_fraction, **estimates.stats}
        if clip.norm is not None:
            figures["gradient_norm"] = clip.norm
        self.optimizers.step(gradients, factors)
        return figures

    def _to_boundary(self) -> int:
        start = self.done
        while True:
            self.figures.add(self.step(self.done))
            self.done += 1
            if self.clock.setting_up or self._at_boundary() or self._stopping:
                return self.done - start

    def _at_boundary(self) -> bool:
        options = self.options
        evaluation = isinstance(options.eval_every, int) and self.done % options.eval_every == 0
        due = self.done % options.log_every == 0 or self.done % options.checkpoint_every == 0
        return due or evaluation or self.done >= self.steps

    @property
    def checkpoint_due(self) -> bool:
        """Whether a checkpoint should be written where the batch stands now."""
        due = self.done > 0 and self.done % self.options.checkpoint_every == 0
        return due and self.done < self.steps and self.status == "running"

    def _due_rows(self) -> list[Row]:
        rows: list[Row] = []
        options, last = self.options, self.done >= self.steps
        if self.done % options.log_every == 0 or last:
            rows += self._training_rows()
        if self.status == "running" and (last or self._evaluation_due()):
            rows += self._evaluation_rows()
        return rows

    def _evaluation_due(self) -> bool:
        every = self.options.eval_every
        if isinstance(every, int):
            return self.done % every == 0
        return time.monotonic() - self._last_evaluation >= float(every[:-1])

    def _evaluation_owed(self) -> bool:
        """Whether there is one at this step, whenever it is made: at the first, the last and by count."""
        every = self.options.eval_every
        return self.done in (0, self.steps) or (isinstance(every, int) and self.done % every == 0)

    def _training_rows(self) -> list[Row]:
        """Means over the steps since the last such rows; here a member's run learns that it has diverged."""
        values = self.figures.means()
        if self.clock.intervals:
            seconds, steps = self.clock.intervals[-1]
            rate = steps / seconds * len(self.members) if seconds else math.nan
            values["steps_per_second"] = [rate] * len(self.members)
        return self._add("train", values)

    def _evaluation_rows(self) -> list[Row]:
        """Metrics on the validation split and, but in tuning, on the test split, which no selection reads."""
        rows = self._metric_rows("validation")
        if self.status == "running" and not self._abandoned and self.options.role != "tune":
            rows += self._metric_rows("test")
        self._last_evaluation = time.monotonic()
        return rows

    def _metric_rows(self, split: str) -> list[Row]:
        """Those of a whole split; none where a stop comes before its end, and none that there are already."""
        here = takewhile(lambda row: row["step"] == self.done, reversed(self.rows))
        if any(row["split"] == split for row in here):
            return []
        start, wanted = time.perf_counter(), [member.status == "running" for member in self.members]
        try:
            values = evaluate(self.stacked, self.engine, split, wanted, lambda: self._stopping)
        except Abandoned:
            self._abandoned = True
            return []
        self.clock.evaluation += max(0.0, time.perf_counter() - start)
        return self._add(split, values)

    def _add(self, split: str, values: dict[str, list[float]]) -> list[Row]:
        """Give the members that still run their rows; those whose loss is not finite end with them."""
        rows: list[Row] = []
        layers = self._layer_stats() if split == "train" else {}
        for place, member in enumerate(self.members):
            if member.status != "running":
                continue
            own = {name: each[place] for name, each in values.items()} | layers.get(place, {})
            rows += member.add(self.done, split, own)
            if split != "test" and not math.isfinite(own["loss"]):
                member.leave("diverged", self.done, self._last_loss(place))
        return rows

    def _layer_stats(self) -> dict[int, dict[str, float]]:
        if not self.options.log_layers or not isinstance(self.clippers, EachClipper):
            return {}
        return {
            place: {
                f"{layer}/{name}": float(value)
                for layer, stats in clipper.layer_stats().items()
                for name, value in stats.items()
            }
            for place, clipper in enumerate(self.clippers.clippers)
        }

    def _last_loss(self, place: int) -> float:
        return self.figures.last_losses()[place] if self.done else math.nan

    def _end(self) -> None:
        for place, member in enumerate(self.members):
            if member.status == "running":
                member.leave("ok", self.done, self._last_loss(place))

    @property
    def _draws(self) -> bool:
        """Whether any clipper or estimator may draw: only those that are called member by member do."""
        if not isinstance(self.engine, StackEngine):
            return True
        inner = getattr(self.engine.rule, "clippers", None)  # of micro-batches
        return isinstance(self.clippers, EachClipper) or isinstance(inner, EachClipper)

    def state_dict(self) -> dict[str, Any]:
        """All that a resumed batch needs to go on bit for bit."""
        return {
            "done": self.done, "clock": self.clock.state_dict(), "figures": self.figures.state_dict(),
            "members": [member.state_dict() for member in self.members], "weights": self.stacked.weights,
            "engine": self.engine.state_dict(), "clippers": self.clippers.state_dict(),
            "optimizers": self.optimizers.state_dict(),
        }  # fmt: skip

    def load_state_dict(self, state: dict[str, Any]) -> None:
        state = on_device(state, self.device)
        self.done = state["done"]
        self.clock.load_state_dict(state["clock"])
        self.figures.load_state_dict(state["figures"])
        for member, own in zip(self.members, state["members"], strict=True):
            member.load_state_dict(own)
        for name, stacked in self.stacked.weights.items():
            stacked.copy_(state["weights"][name])
        self.engine.load_state_dict(state["engine"])
        self.clippers.load_state_dict(state["clippers"])
        self.optimizers.load_state_dict(state["optimizers"])


def on_device(state: Any, device: torch.device) -> Any:
    """The same containers with every tensor on `device`."""
    if isinstance(state, Tensor):
        return state.to(device)
    if isinstance(state, dict):
        return {key: on_device(value, device) for key, value in state.items()}
    return [on_device(value, device) for value in state] if isinstance(state, list) else state
