"""Clipping in Hugging Face's Trainer: a callback for rules on gradients, a mixin for per-sample clipping."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from clipbench.extras import need

need("transformers", "accelerate")

import torch
from torch import Tensor, nn
from transformers import TrainerCallback

from clipbench.integrations.accumulation import Window
from clipbench.integrations.state import AnyClipper, ClipperState
from clipbench.per_sample import PerSampleClipper

FILE = "clipper.pt"  # in the Trainer's checkpoints


class ClipCallback(TrainerCallback):  # type: ignore[misc]
    """`Trainer(…, callbacks=[ClipCallback(clipper)])`: clips the accumulated gradients before every optimizer step.

    Set `max_grad_norm=0`, or the Trainer clips before it. A GradScaler's scale (fp16) is out by then. What the clipper
    remembers lies in the checkpoint's folder as clipper.pt and is read when training goes on from there. The Trainer
    does not say where that is: a checkpoint that lies elsewhere than in `output_dir` is to be named as `resume_from`
    (or as `TrainingArguments.resume_from_checkpoint`), and where none is found one that has a state warns. `stats`
    is what the last call told. Raises ValueError for what is no clipper, and for a `resume_from` without its file.
    """

    def __init__(self, clipper: AnyClipper, resume_from: str | Path | None = None) -> None:
        self.state = ClipperState(clipper)
        self.resume_from = resume_from
        self.told: str | None = None  # by a Trainer of ours: the checkpoint it goes on from
        self.stats: Any = None

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The Trainer's event; a per-sample clipper has acted in the backward pass."""
        if not isinstance(self.state.clipper, PerSampleClipper):
            self.stats = self.state.clipper(kwargs["model"].named_parameters())

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The Trainer's event, once its own files lie there."""
        if state.is_world_process_zero:
            torch.save(self.state.state_dict(), _file(args, state))

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The Trainer's event; beyond step 0 it goes on from a checkpoint."""
        if not state.global_step:
            return
        named = self.resume_from or self.told or getattr(args, "resume_from_checkpoint", None)
        file = Path(named) / FILE if isinstance(named, str | Path) else _file(args, state)
        if file.exists():
            self.state.load_state_dict(torch.load(file, weights_only=True))
        elif self.resume_from is not None:
            raise ValueError(f"resume_from must be a checkpoint with {FILE}, got {self.resume_from}")
        elif self.state.remembers:
            warnings.warn(
                f"training goes on from step {state.global_step}, but there is no {file}: the clipper starts afresh "
                "(ClipCallback's resume_from names a checkpoint)",
                stacklevel=2,
            )


def _file(args: Any, state: Any) -> Path:
    return Path(args.output_dir) / f"checkpoint-{state.global_step}" / FILE


class PerSampleTrainerMixin:
    """`class MyTrainer(PerSampleTrainerMixin, Trainer)`, made with `clipper=PerSampleClipper(model, threshold)`.

    A subclass says what a sample's loss is: `sample_losses(model, inputs)` → (n,). Accumulation, bf16 and fp16 are
    heeded; the Trainer gives every part of an accumulated batch the same weight. Set `max_grad_norm=0`, or the mean is
    clipped once more. `clip_stats` is what the last call told. The model must not be wrapped by the Trainer (several
    processes, or several GPUs in one). Raises ValueError where it is.
    """

    clip_stats: Any = None

    def __init__(self, *args: Any, clipper: PerSampleClipper, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.clipper, self._window = clipper, Window()
        self._kept = ClipCallback(clipper)
        self.add_callback(self._kept)  # type: ignore[attr-defined]

    def train(self: Any, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """The Trainer's own, which tells the clipper where it goes on from."""
        self._kept.told = None if isinstance(resume_from_checkpoint, bool) else resume_from_checkpoint
        return super().train(resume_from_checkpoint, *args, **kwargs)  # type: ignore[misc]

    def sample_losses(self, model: nn.Module, inputs: dict[str, Any]) -> Tensor:
        """One loss per sample, (n,); classification by logits and labels unless a subclass says another."""
        labels = inputs["labels"]
        logits = model(**{name: value for name, value in inputs.items() if name != "labels"}).logits
        return nn.functional.cross_entropy(logits.float(), labels, reduction="none")

    def training_step(self: Any, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        """In place of the Trainer's own: forward, losses, per-sample clipping; the mean loss over the parts."""
        if self.args.world_size > 1 or self.args.n_gpu > 1:
            raise ValueError(f"the Trainer must run on one device, got {self.args.world_size * self.args.n_gpu}")
        model.train()
        if callable(getattr(self.optimizer, "train", None)):
            self.optimizer.train()
        with self.compute_loss_context_manager():
            losses = self.sample_losses(model, self._prepare_inputs(inputs))
        parts, scaler = self.current_gradient_accumulation_steps, self.accelerator.scaler
        scaled, scale = (losses, 1.0) if scaler is None else (scaler.scale(losses), scaler.get_scale())
        self.clip_stats = self._window.backward(self.clipper, scaled, parts, scale)
        return losses.detach().mean() / parts
