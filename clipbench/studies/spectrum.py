"""What outliers in the data do to the singular values of layers' gradients, arXiv 2605.11838.

    D = [log(s₁′/s₁) − bulk] − the same of the control      bulk = median over the middle half of log(s_i′/s_i)

s: of a clean mini-batch's gradient, s′: after m of its samples became outliers (or, in the control, other clean
samples). The network is trained by the package's own trainer and measured at given steps, without dropout.

Rows (step = optimizer steps): `top` and `bulk` with labels kind (control, targets, inputs, loss), count, layer, part:
means over one of `groups` equal parts of the batches, so that D and its interval follow; `excess` with kind, count,
layer: D over all batches; `log_sigma` with kind (also clean), count, layer, rank: the mean log of single singular
values; `train_loss` and the validation metrics without labels. Final figures: `share_<kind>`, the share of layers with
D > log 1.5 and the bulk within 10 % at the deciding count.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from clipbench.config.checks import at_least, positive, require
from clipbench.data.base import Batch
from clipbench.runs.job import Row
from clipbench.studies.base import Study, metric_name
from clipbench.studies.outliers import KINDS, change, singular_values, with_outliers
from clipbench.training.evaluation import evaluate
from clipbench.training.seeding import generator
from clipbench.training.setup import Setup
from clipbench.training.trainer import Trainer

TRAIN_STEPS = 50  # in a piece of training
RANKS = 40  # at most so many singular values are recorded


def ranks(side: int) -> list[int]:
    """About RANKS numbers from 1 to side, evenly spread on a log scale."""
    return sorted({round(math.exp(math.log(side) * i / (RANKS - 1))) for i in range(RANKS)})


class Spectrum(Study):
    """One network and its data.

    checkpoints: steps at which is measured, ascending.  batches: for the deciding count.  shown_batches: for the other
    counts.  counts: m, ascending.  decides: the deciding one.  factor: on the loss.  floor: singular values below
    floor · s₁ are not counted (float32 gradients).  groups: parts of the batches, which must divide both numbers.
    Raises ValueError where one is out of range, or the data have no classes.
    """

    def __init__(
        self,
        setup: Setup,
        seed: int,
        checkpoints: list[int],
        batches: int,
        shown_batches: int,
        counts: list[int],
        decides: int,
        factor: float,
        floor: float,
        groups: int,
    ) -> None:
        super().__init__(seed)
        require(bool(checkpoints) and checkpoints == sorted(set(checkpoints)), "checkpoints", "ascending", checkpoints)
        require(bool(counts) and counts == sorted(set(counts)), "counts", "ascending", counts)
        at_least("checkpoints", checkpoints[0], 1)
        at_least("counts", counts[0], 1)
        most, free = counts[-1], setup.data.sizes["train"] - setup.samples_per_step
        require(
            most <= min(setup.samples_per_step, free), "counts", "within a batch and what is left of the data", most
        )
        require(decides in counts, "decides", f"one of counts {counts}", decides)
        at_least("groups", groups, 1)
        for name, number in (("batches", batches), ("shown_batches", shown_batches)):
            require(number >= groups and number % groups == 0, name, f"a multiple of groups ({groups})", number)
        require(shown_batches <= batches, "shown_batches", f"<= batches ({batches})", shown_batches)
        positive("factor", factor)
        require(0 < floor < 1, "floor", "in (0, 1)", floor)
        self.setup, self.device = setup, setup.device
        self.trainer = Trainer(setup)
        self.checkpoints, self.counts, self.decides = checkpoints, counts, decides
        self.batches, self.shown_batches, self.groups = batches, shown_batches, groups
        self.factor, self.floor = factor, floor
        self.pieces = self._pieces()
        self.steps = len(self.pieces)
        # (layer, kind, count) → (top, bulk) of each batch; (layer, kind) → sum of log singular values
        self.changes: dict[str, list[list[float]]] = {}
        self.logs: dict[str, torch.Tensor] = {}
        self.last_loss = math.nan

    def _pieces(self) -> list[tuple[str, int]]:
        """("train", up to which step), and for every checkpoint ("measure", part of the batches)."""
        found: list[tuple[str, int]] = []
        before = 0
        for checkpoint in self.checkpoints:
            found += [("train", step) for step in range(before + TRAIN_STEPS, checkpoint, TRAIN_STEPS)]
            found.append(("train", checkpoint))
            found += [("measure", group) for group in range(self.groups)]
            before = checkpoint
        return found

    def about(self) -> dict[str, Any]:
        return {**self.trainer.about(), "precision": self.setup.options.precision}

    def advance(self) -> list[Row]:
        kind, number = self.pieces[self.done]
        if kind == "train":
            self._train(number)
            return []
        if number == 0:
            self.changes, self.logs = {}, {}
        size = self.batches // self.groups
        shown = self.shown_batches // self.groups
        for i in range(size):
            self._measure(number * size + i, self.counts if i < shown else [self.decides])
        return self._summary() if number == self.groups - 1 else []

    def _train(self, until: int) -> None:
        self.setup.model.train()
        losses = []
        while self.trainer.done < until:
            losses.append(self.trainer.step(self.trainer.done)["loss"])
            self.trainer.done += 1
        if losses:
            self.last_loss = float(torch.stack(losses).mean())

    def _batches(self, number: int) -> tuple[Batch, Batch]:
        """A clean batch, and other samples for the control; augmented as in training."""
        seed, data, n = self.seed, self.setup.data, self.setup.samples_per_step
        order = torch.randperm(data.sizes["train"], generator=generator(seed, "data", self.trainer.done, number))
        chosen = order[: n + self.counts[-1]].to(self.device)
        # Part 1 and 2: part 0 of a step is what training draws.
        draws = [generator(seed, "augmentation", number, part, self.device) for part in (1, 2)]
        return data.batch(chosen[:n], draws[0]), data.batch(chosen[n:], draws[1])

    def _measure(self, number: int, counts: list[int]) -> None:
        setup = self.setup
        setup.model.eval()
        batch, spare = self._batches(number)
        require(not batch.targets.is_floating_point(), "dataset", "with classes or tokens", setup.dataset.spec.name)
        draw = generator(self.seed, "noise", self.trainer.done, number, self.device)
        outputs, task = setup.dataset.spec.outputs, setup.dataset.task
        clean, changed = with_outliers(setup.model, task, batch, spare, counts, self.factor, outputs, draw)
        before = {layer: singular_values(g) for layer, g in clean.items()}
        for layer, values in before.items():
            self._add(layer, "clean", values)
        for (kind, count), gradients in changed.items():
            for layer, gradient in gradients.items():
                after = singular_values(gradient)
                key = f"{layer} {kind} {count}"
                self.changes.setdefault(key, []).append([*change(before[layer], after, self.floor)])
                if count == self.decides:
                    self._add(layer, kind, after)

    def _add(self, layer: str, kind: str, values: torch.Tensor) -> None:
        logs = values.clamp_min(torch.finfo(values.dtype).tiny).log().cpu()
        self.logs[f"{layer} {kind}"] = self.logs.get(f"{layer} {kind}", torch.zeros_like(logs)) + logs

    def _summary(self) -> list[Row]:
        rows, shares = [], dict.fromkeys(KINDS[1:], 0)
        layers = list(dict.fromkeys(key.split(" ")[0] for key in self.changes))
        for layer in layers:
            for count in self.counts:
                rows += self._change_rows(layer, count)
            rows += self._spectrum_rows(layer)
            for kind in shares:
                shares[kind] += self._shown(layer, kind)
        values = {f"share_{kind}": number / len(layers) for kind, number in shares.items()}
        values["train_loss"] = self.last_loss
        found = evaluate(
            self.setup.model, self.setup.data, self.setup.dataset.task, "validation", self.setup.options.eval_batch_size
        )
        values |= {f"validation_{name}": value for name, value in found.items()}
        return rows + [self._row(name, value) for name, value in values.items()]

    def _means(self, layer: str, kind: str, count: int) -> torch.Tensor:
        """(groups, 2): top and bulk, the means over each part of the batches."""
        table = torch.tensor(self.changes[f"{layer} {kind} {count}"], dtype=torch.float64)
        return table.view(self.groups, -1, 2).mean(dim=1)

    def _excess(self, layer: str, kind: str, count: int) -> float:
        """D over all batches."""
        own, control = self._means(layer, kind, count).mean(0), self._means(layer, "control", count).mean(0)
        return float((own[0] - own[1]) - (control[0] - control[1]))

    def _shown(self, layer: str, kind: str) -> bool:
        bulk = float(self._means(layer, kind, self.decides)[:, 1].mean())
        return self._excess(layer, kind, self.decides) > math.log(1.5) and abs(math.expm1(bulk)) <= 0.1

    def _change_rows(self, layer: str, count: int) -> list[Row]:
        rows = []
        for kind in KINDS:
            labels = {"kind": kind, "count": count, "layer": layer}
            for i, (top, bulk) in enumerate(self._means(layer, kind, count).tolist()):
                rows.append(self._row(metric_name("top", **labels, part=i), top))
                rows.append(self._row(metric_name("bulk", **labels, part=i), bulk))
            if kind != "control":
                rows.append(self._row(metric_name("excess", **labels), self._excess(layer, kind, count)))
        return rows

    def _spectrum_rows(self, layer: str) -> list[Row]:
        rows = []
        for kind in ("clean", *KINDS):
            logs = self.logs[f"{layer} {kind}"] / self.batches
            labels = {"kind": kind, "count": self.decides, "layer": layer}
            rows += [
                self._row(metric_name("log_sigma", **labels, rank=r), float(logs[r - 1])) for r in ranks(len(logs))
            ]
        return rows

    def _row(self, metric: str, value: float) -> Row:
        done = self.trainer.done
        return self.row(done, metric, value, samples=done * self.setup.samples_per_step)

    def progress(self) -> dict[str, Any]:
        return {
            "trainer": self.trainer.state_dict(), "changes": self.changes, "logs": self.logs, "loss": self.last_loss,
        }  # fmt: skip

    def load_progress(self, progress: dict[str, Any]) -> None:
        self.trainer.load_state_dict(progress["trainer"])
        self.changes = {key: [list(pair) for pair in pairs] for key, pairs in progress["changes"].items()}
        self.logs, self.last_loss = dict(progress["logs"]), progress["loss"]
