"""Clipping in Lightning: a mixin for a LightningModule, automatic and manual optimisation."""

from __future__ import annotations

from typing import Any

from clipbench.extras import need

need("lightning")

from torch import Tensor
from torch.optim import Optimizer

from clipbench.integrations.accumulation import Window
from clipbench.integrations.state import AnyClipper, ClipperState, check_clipper
from clipbench.per_sample import PerSampleClipper, SampleClipStats

KEY = "clipbench_clipper"  # in Lightning's checkpoints


class ClippingMixin:
    """`class Module(ClippingMixin, LightningModule)`; its `__init__` calls `self.set_clipper(clipper)`.

    A Clipper acts on the gradients before every optimizer step, after a GradScaler's scale was taken out; at the
    parameters of that step's optimizer, under their names in the module. With a PerSampleClipper, made of the module
    (`PerSampleClipper(self, threshold)`), `training_step` returns losses of shape (n,), and in manual optimisation
    `self.manual_backward(losses)` takes them; `accumulate_grad_batches` and precision "16-mixed" are heeded. What the
    clipper remembers is in the checkpoint. `self.clip_stats` is what the last call told. Own versions of the hooks
    below call `super()`.
    """

    clip_stats: Any = None
    trainer: Any
    automatic_optimization: bool
    named_parameters: Any

    def set_clipper(self, clipper: AnyClipper) -> None:
        """Use `clipper` from now on. Raises ValueError for what is no clipper."""
        self._clipper = check_clipper(clipper)
        self._window = Window()

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Lightning's hook: `loss` was divided by the number of parts, and multiplied by a GradScaler's scale."""
        if not isinstance(self._clipper, PerSampleClipper):
            super().backward(loss, *args, **kwargs)  # type: ignore[misc]
            return
        parts = self.trainer.accumulate_grad_batches if self.automatic_optimization else 1
        scaler = getattr(self.trainer.precision_plugin, "scaler", None)
        scale = 1.0 if scaler is None else scaler.get_scale()
        self.clip_stats: SampleClipStats = self._window.backward(self._clipper, loss * parts, parts, scale)

    def on_before_zero_grad(self, optimizer: Optimizer) -> None:
        """Lightning's hook, before the first part of a window."""
        super().on_before_zero_grad(optimizer)  # type: ignore[misc]
        self._window.restart()

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Lightning's hook, in both ways of optimising after a GradScaler's scale was taken out."""
        super().on_before_optimizer_step(optimizer)  # type: ignore[misc]
        if isinstance(self._clipper, PerSampleClipper):
            return
        own = {id(param) for group in optimizer.param_groups for param in group["params"]}
        self.clip_stats = self._clipper([pair for pair in self.named_parameters() if id(pair[1]) in own])

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Lightning's hook."""
        super().on_save_checkpoint(checkpoint)  # type: ignore[misc]
        checkpoint[KEY] = ClipperState(self._clipper).state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Lightning's hook; a checkpoint of a run without a clipper leaves this one as it is."""
        super().on_load_checkpoint(checkpoint)  # type: ignore[misc]
        if KEY in checkpoint:
            ClipperState(self._clipper).load_state_dict(checkpoint[KEY])
