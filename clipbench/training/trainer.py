"""The only training loop."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from clipbench.training.batches import Batches
from clipbench.training.clock import Clock
from clipbench.training.evaluation import evaluate
from clipbench.training.seeding import derive, generator
from clipbench.training.setup import Setup

Row = dict[str, Any]


class Trainer:
    """Trains a `Setup` from step `done` to its last step, and says when something is due.

    `rows` are the metric rows so far, `status` becomes `diverged` where a logged training loss is not finite.
    Between two boundaries (log, evaluation, checkpoint, end) nothing waits for the device.
    """

    def __init__(self, setup: Setup, clock: Clock | None = None) -> None:
        self.setup = setup
        self.clock = clock or Clock(setup.device)
        options = setup.options
        self.batches = Batches(setup.data, options.seed, options.batch_size, options.accumulation, setup.device)
        self.named = setup.parameters()
        self.rates = [group["lr"] for group in setup.optimizer.param_groups]
        self.done = 0
        self.rows: list[Row] = []
        self.status = "running"
        self.stopping = False  # set from outside: stop after the step under way
        self.save_due = False  # whether the rows just yielded want a checkpoint after them
        self._sums: dict[str, Tensor] = {}
        self._summed = 0
        self._last_evaluation = 0.0

    @property
    def steps(self) -> int:
        """Optimizer steps of the whole run."""
        return self.setup.steps

    @property
    def device(self) -> torch.device:
        """Where the run computes."""
        return self.setup.device

    @property
    def precision(self) -> str:
        """fp32, tf32 or bf16."""
        return self.setup.options.precision

    @property
    def samples_per_step(self) -> int:
        """Samples in one optimizer step."""
        return self.setup.samples_per_step

    @property
    def parameters(self) -> int:
        """How many numbers are trained."""
        return sum(p.numel() for _, p in self.named)

    @property
    def data(self) -> dict[str, Any]:
        """What run.json says of the data."""
        return self.setup.dataset.provenance

    def step(self, step: int) -> dict[str, Tensor]:
        """One optimizer step, counted from 0; the step's figures as 0-dim tensors on the device."""
        setup, seed = self.setup, self.setup.options.seed
        factor = setup.schedule.factor(step, setup.steps)
        for group, rate in zip(setup.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * factor
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
        setup.optimizer.step()
        setup.optimizer.zero_grad(set_to_none=True)
        return figures

    def losses(self, step: int) -> Iterator[Tensor]:
        """Per-sample losses (n_m,) of each micro-batch of `step`, with their graph."""
        task = self.setup.dataset.task
        for batch in self.batches.step(step):
            with self._autocast():
                outputs = self.setup.model(batch.inputs)
            yield task.losses(outputs.float(), batch)

    def _autocast(self) -> AbstractContextManager[Any]:
        if self.setup.options.precision == "bf16":
            return torch.autocast(self.setup.device.type, dtype=torch.bfloat16)
        return nullcontext()

    def run(self) -> Iterator[list[Row]]:
        """Train to the end, to divergence, or until `stopping` is set; yields the new rows while the clock stands.

        Where `save_due` is set then, the state is to be written to a checkpoint.
        """
        setup, options = self.setup, self.setup.options
        setup.model.train()
        self._last_evaluation = time.monotonic()
        if not self.rows:
            self.rows += self._evaluation_rows("validation")
            yield self.rows[:]
        while self.done < setup.steps and self.status == "running" and not self.stopping:
            self.clock.start()
            timed = self._stretch()
            self.clock.stop(timed)
            new = self._due_rows()
            self.rows += new
            unfinished = self.done < setup.steps and self.status == "running"
            self.save_due = unfinished and self.done % options.checkpoint_every == 0
            yield new
        if self.status == "running" and self.done >= setup.steps:
            self.status = "ok"

    def _stretch(self) -> int:
        """Steps up to the next boundary, without waiting for the device; the number of steps done."""
        start = self.done
        while True:
            figures = self.step(self.done)
            if self._sums:
                torch._foreach_add_(list(self._sums.values()), [figures[name] for name in self._sums])
            else:
                self._sums = {name: value.clone() for name, value in figures.items()}
            self._summed += 1
            self.done += 1
            if self.clock.setting_up or self._at_boundary() or self.stopping:
                return self.done - start

    def _at_boundary(self) -> bool:
        options = self.setup.options
        evaluation = isinstance(options.eval_every, int) and self.done % options.eval_every == 0
        due = self.done % options.log_every == 0 or self.done % options.checkpoint_every == 0
        return due or evaluation or self.done >= self.setup.steps

    def _due_rows(self) -> list[Row]:
        rows: list[Row] = []
        options, last = self.setup.options, self.done >= self.setup.steps
        if self.done % options.log_every == 0 or last:
            rows += self._training_rows()
        if self.status == "running" and (last or self._evaluation_due()):
            rows += self._evaluation_rows("validation")
            if last and options.role != "tune":  # tuning never touches test
                rows += self._evaluation_rows("test")
        return rows

    def _evaluation_due(self) -> bool:
        every = self.setup.options.eval_every
        if isinstance(every, int):
            return self.done % every == 0
        return time.monotonic() - self._last_evaluation >= float(every[:-1])

    def _training_rows(self) -> list[Row]:
        """Means over the steps since the last such rows; here the run learns that it has diverged."""
        values = {name: float(total) / self._summed for name, total in self._sums.items()}
        self._sums, self._summed = {}, 0
        if not math.isfinite(values["loss"]):
            self.status = "diverged"
        if self.clock.intervals:
            seconds, steps = self.clock.intervals[-1]
            values["steps_per_second"] = steps / seconds if seconds else math.nan
        if self.setup.options.log_layers:
            layers = self.setup.clipper.layer_stats()
            values |= {f"{layer}/{k}": float(v) for layer, stats in layers.items() for k, v in stats.items()}
        return [self._row("train", name, value) for name, value in values.items()]

    def _evaluation_rows(self, split: str) -> list[Row]:
        setup, start = self.setup, time.perf_counter()
        with self._autocast():
            metrics = evaluate(setup.model, setup.data, setup.dataset.task, split, setup.options.eval_batch_size)
        self.clock.evaluation += max(0.0, time.perf_counter() - start)
        self._last_evaluation = time.monotonic()
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

    def state_dict(self) -> dict[str, Any]:
        """All that a resumed run needs to go on bit for bit; random draws are functions of (seed, step)."""
        setup = self.setup
        return {
            "done": self.done, "rows": self.rows, "clock": self.clock.state_dict(),
            "sums": self._sums, "summed": self._summed,
            "model": setup.model.state_dict(), "optimizer": setup.optimizer.state_dict(),
            "estimator": setup.estimator.state_dict(), "clipper": setup.clipper.state_dict(),
        }  # fmt: skip

    def load_state_dict(self, state: dict[str, Any]) -> None:
        setup = self.setup
        self.done, self.rows = state["done"], list(state["rows"])
        self.clock.load_state_dict(state["clock"])
        self._sums = {name: value.to(setup.device) for name, value in state["sums"].items()}
        self._summed = state["summed"]
        setup.model.load_state_dict(state["model"])
        setup.optimizer.load_state_dict(state["optimizer"])
        setup.estimator.load_state_dict(state["estimator"])
        setup.clipper.load_state_dict(state["clipper"])
