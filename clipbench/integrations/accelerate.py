"""Clipping with Accelerate: accumulation, GradScaler and checkpoints of an Accelerator."""

from __future__ import annotations

from clipbench.extras import need

need("accelerate")

import accelerate
from torch import Tensor, nn
from torch.optim import Optimizer

from clipbench.clipping import ClipStats
from clipbench.integrations.accumulation import Window
from clipbench.integrations.state import AnyClipper, ClipperState
from clipbench.per_sample import PerSampleClipper, SampleClipStats


class AcceleratedClipper:
    """A clipper that knows its Accelerator; its state is in `accelerator.save_state` and `load_state` from now on.

    Raises ValueError for what is no clipper. A PerSampleClipper is made of the model that `accelerator.prepare` gave.
    """

    def __init__(self, accelerator: accelerate.Accelerator, clipper: AnyClipper) -> None:
        self.accelerator, self.clipper = accelerator, clipper
        accelerator.register_for_checkpointing(ClipperState(clipper))
        self._window = Window()

    def backward(self, losses: Tensor) -> SampleClipStats:
        """Instead of `accelerator.backward(losses.mean())`: per-sample clipping of losses (n,), one part of a window.

        Raises ValueError where the clipper is not per-sample.
        """
        if not isinstance(self.clipper, PerSampleClipper):
            raise ValueError(f"clipper must be a PerSampleClipper for backward(losses), got {self.clipper!r}")
        scaler = self.accelerator.scaler
        scaled, scale = (losses, 1.0) if scaler is None else (scaler.scale(losses), scaler.get_scale())
        stats = self._window.backward(self.clipper, scaled, self.accelerator.gradient_accumulation_steps, scale)
        if self.accelerator.sync_gradients:  # the last part, also where the data ended before the window did
            self._window.restart()
        return stats

    def clip(self, model: nn.Module, optimizer: Optimizer) -> ClipStats | None:
        """Before `optimizer.step()`: clip the gradients where this step is one; None in the other parts.

        A GradScaler's scale is taken out first. Names are those of the unwrapped model. Raises ValueError where the
        clipper is per-sample.
        """
        if isinstance(self.clipper, PerSampleClipper):
            raise ValueError(f"clipper must be a Clipper for clip(model, optimizer), got {self.clipper!r}")
        if not self.accelerator.sync_gradients:
            return None
        self.accelerator.unscale_gradients(optimizer)
        return self.clipper(self.accelerator.unwrap_model(model).named_parameters())
