"""Synthetic regression or classification with heavy-tailed noise on inputs, labels or gradients.

Inputs are N(0, I), targets come from a teacher. All of it is drawn from one seed, on the CPU: data.split_seed, so
that every run and every device sees the same data, or the run's own seed where that is null. Only the training
samples are noisy: with infinite variance the mean loss over noisy validation samples would not converge to anything.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from clipbench.config.checks import at_least, one_of, require
from clipbench.data import tails
from clipbench.data.base import Spec
from clipbench.data.tasks import Classification, Regression
from clipbench.data.vectors import VectorData, Vectors
from clipbench.training import seeding

Problem = Literal["regression", "classification"]
Teacher = Literal["linear", "network", "product"]
Noise = Literal["none", "student_t", "pareto", "alpha_stable"]
Place = Literal["inputs", "labels", "gradients"]
TEACHER_WIDTH = 32  # hidden units of the network teacher


class HeavyTailed:
    """See clipbench.data.base.Dataset.

    problem: regression (squared error) or classification (the class is the teacher's largest output).
    teacher: linear; network (one hidden layer of tanh units); product (x₁x₂x₃, the target of paper 2's MLP).
        The outputs of the first two are scaled to unit variance over all samples.
    noise, index, scale: the distribution (clipbench.data.tails), its tail index, and the factor before it.
    noise_on: where a noise vector e is added, independently in every coordinate.
        inputs: to the input of a training sample, once; its target is that of the clean input.
        labels: to the target of a training sample, once; for classification to the teacher's outputs, before
        the
            largest is taken.
        gradients: at every visit of a training sample a fresh e_k, from the batch's generator, adds ⟨e_k,
        output_k⟩ to
            its training loss, that is e_k to the gradient at the model's output. For index > 1 its mean is
            zero, so the expected gradient is that of the clean loss. Metrics exclude it.
    features, outputs: of a sample.  samples, validation, test: sizes.  subset: training samples kept (None:
    all). Raises ValueError for sizes below 1, an index or scale that is not > 0, an alpha_stable index above
    2, and combinations that make no sense (one class, a product of fewer than three features).
    """

    def __init__(
        self,
        problem: Problem = "regression",
        teacher: Teacher = "network",
        noise: Noise = "student_t",
        index: float = 1.5,
        scale: float = 1.0,
        noise_on: Place = "labels",
        features: int = 20,
        outputs: int = 1,
        samples: int = 8000,
        validation: int = 1000,
        test: int = 1000,
        label_smoothing: float = 0.0,
        subset: int | None = None,
    ) -> None:
        one_of("noise_on", noise_on, get_args(Place))
        one_of("noise", noise, get_args(Noise))
        tails.check("student_t" if noise == "none" else noise, index, scale)
        sizes = {"outputs": outputs, "samples": samples, "validation": validation, "test": test}
        for name, size in sizes.items():
            at_least(name, size, 1)
        require(subset is None or 1 <= subset <= samples, "subset", f"null or in 1 … {samples}", subset)
        _check_problem(problem, teacher, features, outputs, label_smoothing)
        self.spec = Spec("vector", (features,), outputs, "heavy_tailed")
        self.task = Classification(label_smoothing) if problem == "classification" else Regression()
        self._loaded: tuple[int, Tensor, Tensor] | None = None
        self.problem, self.teacher, self.noise_on = problem, teacher, noise_on
        self.noise, self.index, self.scale = noise, index, scale
        self.samples, self.validation, self.test, self.subset = samples, validation, test, subset

    def load(
        self, device: torch.device, root: Path, split_seed: int, verify: bool = True, download: bool = True
    ) -> VectorData:
        """Draw the data; `root`, `verify` and `download` have no meaning here."""
        generator = seeding.generator(split_seed, "data")
        ends = (self.samples, self.samples + self.validation, self.samples + self.validation + self.test)
        inputs = torch.randn(ends[-1], self.spec.shape[0], generator=generator)
        outputs = self._teach(inputs, generator)
        inputs, outputs = self._add_noise(inputs, outputs, generator)
        targets = outputs.argmax(1) if self.problem == "classification" else outputs
        kept = self.samples if self.subset is None else self.subset
        rows: dict[str, slice] = {
            "train": slice(0, kept),
            "validation": slice(ends[0], ends[1]),
            "test": slice(ends[1], ends[2]),
        }
        splits = {name: Vectors(inputs[part].clone(), targets[part].clone()).to(device) for name, part in rows.items()}
        self._loaded = (split_seed, splits["train"].targets, splits["validation"].targets)
        fresh = self.noise != "none" and self.noise_on == "gradients"
        return VectorData(splits, functools.partial(self._draw, self.spec.outputs) if fresh else None)

    @property
    def provenance(self) -> dict[str, Any]:
        """How the data were made; empty before `load`. Reads values, which `load` does not."""
        if self._loaded is None:
            return {}
        split_seed, train, held_out = self._loaded
        return {"generated": True, "split_seed": split_seed, "trivial": self._trivial(train, held_out)}

    def _trivial(self, train: Tensor, held_out: Tensor) -> dict[str, float]:
        """Validation metrics of the best constant: the most frequent class at its frequencies, or the mean target."""
        if self.problem == "classification":
            shares = torch.bincount(train, minlength=self.spec.outputs).double() / len(train)
            loss = -shares.clamp_min(1 / (2 * len(train))).log()[held_out].mean()
            return {"accuracy": float((held_out == shares.argmax()).double().mean()), "loss": float(loss)}
        return {"loss": float((held_out.double() - held_out.double().mean(0)).square().mean())}

    def _teach(self, inputs: Tensor, generator: torch.Generator) -> Tensor:
        """Clean outputs, (n, outputs)."""
        features, outputs = self.spec.shape[0], self.spec.outputs
        if self.teacher == "product":
            return inputs[:, :3].prod(1, keepdim=True)
        hidden = inputs
        if self.teacher == "network":
            first = torch.randn(features, TEACHER_WIDTH, generator=generator)
            hidden = torch.tanh(inputs @ first * (2.0 / features**0.5))  # wide enough to leave tanh's linear part
        values = hidden @ torch.randn(hidden.shape[1], outputs, generator=generator)
        return values / values.std(0, correction=0)

    def _add_noise(self, inputs: Tensor, outputs: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Noise on the training samples, which come first."""
        if self.noise == "none" or self.noise_on == "gradients":
            return inputs, outputs
        noisy = (inputs if self.noise_on == "inputs" else outputs).clone()
        noisy[: self.samples] += self._draw(noisy.shape[1], self.samples, generator)
        return (noisy, outputs) if self.noise_on == "inputs" else (inputs, noisy)

    def _draw(self, width: int, n: int, generator: torch.Generator) -> Tensor:
        return tails.draw(self.noise, (n, width), self.index, self.scale, generator)


def _check_problem(problem: str, teacher: str, features: int, outputs: int, label_smoothing: float) -> None:
    """Raise ValueError where the teacher cannot teach the problem, or an option has no meaning for it."""
    one_of("problem", problem, get_args(Problem))
    one_of("teacher", teacher, get_args(Teacher))
    at_least("features", features, 3 if teacher == "product" else 1)
    if problem == "classification":
        require(outputs >= 2, "outputs", ">= 2 for classification", outputs)
        require(teacher != "product", "teacher", "linear or network for classification", teacher)
    else:
        require(outputs == 1 or teacher != "product", "teacher", "linear or network where outputs > 1", teacher)
        require(label_smoothing == 0, "label_smoothing", "0 for regression", label_smoothing)
