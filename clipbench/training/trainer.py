"""The only training loop."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor

from clipbench.data.sums import data_sum
from clipbench.runs import memory
from clipbench.runs.job import Row
from clipbench.training.batches import Batches
from clipbench.training.clock import Clock
from clipbench.training.evaluation import Abandoned, at_least_single, evaluate
from clipbench.training.figures import Figures
from clipbench.training.finals import finals
from clipbench.training.seeding import derive, generator
from clipbench.training.setup import Setup
from clipbench.training.update import Update


class Trainer:
    """Trains a `Setup` from step `done` to its last step; a `clipbench.runs.job.Job`.

    `rows` are the metric rows so far, `status` becomes `diverged` where a logged training loss is not finite.
    Between two boundaries (log, evaluation, checkpoint, end) nothing waits for the device.
    """

    def __init__(self, setup: Setup, clock: Clock | None = None) -> None:
        self.setup = setup
        self.device, self.steps = setup.device, setup.steps
        self.clock = clock or Clock(setup.device)
        options = setup.options
        self.batches = Batches(setup.data, options.seed, options.batch_size, options.accumulation, setup.device)
        self.named = setup.parameters()
        self.rates = [group["lr"] for group in setup.optimizer.param_groups]
        if options.log_layers:
            setup.clipper.measure_layers()
        self.update = Update(setup.update, setup.optimizer, self.named) if setup.update is not None else None
        self.figures = Figures()
        self.done = 0
        self.rows: list[Row] = []
        self.status = "running"
        self._stopping = self._abandoned = False
        self._last_evaluation = 0.0

    def run(self) -> Iterator[list[Row]]:
        """Train to the end, to divergence or until `stop`, yielding the new rows whenever the clock stands still.

        An evaluation that a stop left unfinished is made up for first.
        """
        self.setup.model.train()
        memory.forget_peak(self.device)
        self._last_evaluation = time.monotonic()
        if self._evaluation_owed() and (rows := self._evaluation_rows()):
            yield self._kept(rows)
        while self.status == "running" and self.done < self.steps and not self._stopping:
            self.clock.start()
            steps = self._to_boundary()
            self.clock.stop(steps)
            yield self._kept(self._due_rows())
        if self.status == "running" and self.done >= self.steps and not self._abandoned:
            self.status = "ok"

    def stop(self) -> None:
        """Let `run` end after the step, or the evaluation's batch, under way."""
        self._stopping = True

    def step(self, step: int) -> dict[str, Tensor]:
        """One optimizer step, counted from 0; the step's figures as 0-dim tensors on the device."""
        setup, seed = self.setup, self.setup.options.seed
        for group, rate in zip(setup.optimizer.param_groups, self.rates, strict=True):
            # A group may reach its schedule's end before the run's: "span" is the share of the run it takes.
            length = max(1, round(setup.steps * group.get("span", 1.0)))
            group["lr"] = rate * setup.schedule.factor(min(step, length), length)
        draws = derive(seed, "clipper", step)
        setup.clipper.reseed(draws)
        setup.estimator.reseed(draws + 1)
        estimate = setup.estimator(self.losses(step), setup.samples_per_step)
        if setup.noise is not None:
            setup.noise(self.named, generator(seed, "noise", step, device=setup.device))
        clip = setup.clipper(self.named)
        figures = {"loss": estimate.loss, "clipped_fraction": clip.clipped_fraction, **estimate.stats}
        if clip.norm is not None:
            figures["gradient_norm"] = clip.norm
        if self.update is None:
            setup.optimizer.step()
        else:
            figures["update_clipped_fraction"] = self._clipped_update(draws + 2)
        setup.optimizer.zero_grad(set_to_none=True)
        return figures

    def _clipped_update(self, draws: int) -> Tensor:
        """The optimizer's step and the rule on it; the share that was clipped."""
        assert self.update is not None  # the caller asked
        self.update.rule.reseed(draws)
        self.update.before()
        self.setup.optimizer.step()
        return self.update.after().clipped_fraction

    def losses(self, step: int) -> Iterator[Tensor]:
        """Per-sample losses (n_m,) of each micro-batch of `step`, with their graph."""
        task = self.setup.dataset.task
        for batch in self.batches.step(step):
            with self._autocast():
                outputs = self.setup.model(batch.inputs)
            yield task.losses(at_least_single(outputs), batch)

    def _autocast(self) -> AbstractContextManager[Any]:
        if self.setup.options.precision == "bf16":
            return torch.autocast(self.setup.device.type, dtype=torch.bfloat16)
        return nullcontext()

    def _to_boundary(self) -> int:
        """Steps up to the next boundary, without waiting for the device; the number of steps done."""
        start = self.done
        while True:
            self.figures.add(self.step(self.done))
            self.done += 1
            if self.clock.setting_up or self._at_boundary() or self._stopping:
                return self.done - start

    def _at_boundary(self) -> bool:
        options = self.setup.options
        evaluation = isinstance(options.eval_every, int) and self.done % options.eval_every == 0
        due = self.done % options.log_every == 0 or self.done % options.checkpoint_every == 0
        return due or evaluation or self.done >= self.steps

    @property
    def checkpoint_due(self) -> bool:
        """Whether a checkpoint should be written where the run stands now."""
        due = self.done > 0 and self.done % self.setup.options.checkpoint_every == 0
        return due and self.done < self.steps and self.status == "running"

    def _due_rows(self) -> list[Row]:
        rows: list[Row] = []
        options, last = self.setup.options, self.done >= self.steps
        if self.done % options.log_every == 0 or last:
            rows += self._training_rows()
        if self.status == "running" and (last or self._evaluation_due()):
            rows += self._evaluation_rows()
        return rows

    def _evaluation_due(self) -> bool:
        every = self.setup.options.eval_every
        if isinstance(every, int):
            return self.done % every == 0
        return time.monotonic() - self._last_evaluation >= float(every[:-1])

    def _evaluation_owed(self) -> bool:
        """Whether there is one at this step, whenever it is made: at the first, the last and by count."""
        every = self.setup.options.eval_every
        return self.done in (0, self.steps) or (isinstance(every, int) and self.done % every == 0)

    def _training_rows(self) -> list[Row]:
        """Means over the steps since the last such rows; here the run learns that it has diverged."""
        values = self.figures.means()
        if not math.isfinite(values["loss"]):
            self.status = "diverged"
        if self.clock.intervals:
            seconds, steps = self.clock.intervals[-1]
            values["steps_per_second"] = steps / seconds if seconds else math.nan
        if self.setup.options.log_layers:
            layers = self.setup.clipper.layer_stats()
            values |= {f"{layer}/{k}": float(v) for layer, stats in layers.items() for k, v in stats.items()}
        return [self._row("train", name, value) for name, value in values.items()]

    def _evaluation_rows(self) -> list[Row]:
        """Metrics on the validation split and, but in tuning, on the test split, which no selection reads."""
        rows = self._metric_rows("validation")
        if self.status == "running" and not self._abandoned and self.setup.options.role != "tune":
            rows += self._metric_rows("test")
        self._last_evaluation = time.monotonic()
        return rows

    def _metric_rows(self, split: str) -> list[Row]:
        """Those of a whole split; none where a stop comes before its end, and none that there are already."""
        here = takewhile(lambda row: row["step"] == self.done, reversed(self.rows))
        if any(row["split"] == split for row in here):
            return []
        setup, start = self.setup, time.perf_counter()
        task, size = setup.dataset.task, setup.options.eval_batch_size
        try:
            with self._autocast():
                metrics = evaluate(setup.model, setup.data, task, split, size, lambda: self._stopping)
        except Abandoned:
            self._abandoned = True
            return []
        self.clock.evaluation += max(0.0, time.perf_counter() - start)
        if split == "validation" and not math.isfinite(metrics["loss"]):
            self.status = "diverged"
        return [self._row(split, name, value) for name, value in metrics.items()]

    def _row(self, split: str, metric: str, value: float) -> Row:
        samples = self.done * self.setup.samples_per_step
        epoch = self.done / self.batches.steps_per_epoch
        return {
            "step": self.done, "epoch": epoch, "samples": samples, "train_seconds": self.clock.train,
            "split": split, "metric": metric, "value": value,
        }  # fmt: skip

    def _kept(self, rows: list[Row]) -> list[Row]:
        self.rows += rows
        return rows

    def about(self) -> dict[str, Any]:
        """What run.json says of the training before its first step."""
        parameters = sum(p.numel() for _, p in self.named)
        return {
            "samples_per_step": self.setup.samples_per_step, "parameters": parameters,
            "data": {**self.setup.dataset.provenance, "sum": data_sum(self.setup.dataset, self.setup.data)},
        }  # fmt: skip

    def finals(self) -> dict[str, dict[str, float]]:
        """Last and best metrics; the train loss is the mean of the last 25 steps, whatever was logged."""
        return finals(self.rows, self.figures.last_loss(), self.status)

    def costs(self) -> dict[str, Any]:
        """Seconds by what they were spent on, the median step's, and the most memory in use in this process."""
        clock = self.clock
        return {
            "seconds": {"train": clock.train, "setup": clock.setup, "evaluation": clock.evaluation},
            "train_step_seconds": clock.step_seconds(), "peak_memory_bytes": memory.peak(self.device),
        }  # fmt: skip

    def state_dict(self) -> dict[str, Any]:
        """All that a resumed run needs to go on bit for bit; random draws are functions of (seed, step)."""
        setup = self.setup
        update = {} if setup.update is None else {"update": setup.update.state_dict()}
        return update | {
            "done": self.done, "rows": self.rows, "clock": self.clock.state_dict(),
            "figures": self.figures.state_dict(),
            "model": setup.model.state_dict(), "optimizer": setup.optimizer.state_dict(),
            "estimator": setup.estimator.state_dict(), "clipper": setup.clipper.state_dict(),
        }  # fmt: skip

    def load_state_dict(self, state: dict[str, Any]) -> None:
        setup = self.setup
        self.done, self.rows = state["done"], list(state["rows"])
        self.clock.load_state_dict(state["clock"])
        self.figures.load_state_dict(state["figures"], setup.device)
        setup.model.load_state_dict(state["model"])
        setup.optimizer.load_state_dict(state["optimizer"])
        setup.estimator.load_state_dict(state["estimator"])
        setup.clipper.load_state_dict(state["clipper"])
        if setup.update is not None:
            setup.update.load_state_dict(state["update"])
