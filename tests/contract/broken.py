"""Rules that look like clippers and are none: each breaks one promise, in a way that has been seen in code."""

from __future__ import annotations

from typing import Any

import torch

from clipbench.clipping import Clipper, ClipStats, EmaThreshold, NormClip
from clipbench.clipping.base import gradients, norms, scale_, total
from clipbench.estimators import MicroBatch, PerSample, SampleEma


class Nothing(Clipper):
    """Does nothing, and says so."""

    def __init__(self, threshold: float = 1.0) -> None:
        self.threshold = threshold

    def __call__(self, named_parameters: Any) -> ClipStats:
        _, grads = gradients(named_parameters)
        norm = total(norms(grads))
        return ClipStats(norm, torch.zeros_like(norm))


class Boasts(Nothing):
    """Does nothing, and says that it does."""

    def __call__(self, named_parameters: Any) -> ClipStats:
        norm = super().__call__(named_parameters).norm
        return ClipStats(norm, (norm > self.threshold).to(norm.dtype))


class Always(Nothing):
    """Scales every gradient to τ, those within it too."""

    def __call__(self, named_parameters: Any) -> ClipStats:
        _, grads = gradients(named_parameters)
        norm = total(norms(grads))
        scale_(grads, min(self.threshold, 1e6) / norm)
        return ClipStats(norm, torch.ones_like(norm))


class Halves(NormClip):
    """Clips, then halves."""

    def __call__(self, named_parameters: Any) -> ClipStats:
        named = list(named_parameters)
        stats = super().__call__(named)
        scale_(gradients(named)[1], torch.tensor(0.5))
        return stats


class Deaf(NormClip):
    """Clips at 1 wherever τ is finite."""

    def __init__(self, threshold: float = 1.0) -> None:
        super().__init__(1.0 if threshold < float("inf") else threshold)


class Forgets(NormClip):
    """Loses the state of its threshold."""

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


class Half(NormClip):
    """Saves its state and does not load it."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


class Silent(NormClip):
    """Clips and reports that it does not."""

    def __call__(self, named_parameters: Any) -> ClipStats:
        stats = super().__call__(named_parameters)
        return ClipStats(stats.norm, torch.zeros_like(stats.clipped_fraction))


class Percent(NormClip):
    """Reports a share in percent."""

    def __call__(self, named_parameters: Any) -> ClipStats:
        stats = super().__call__(named_parameters)
        return ClipStats(stats.norm, 100 * stats.clipped_fraction)


class Undefined(NormClip):
    """Reports no number."""

    def __call__(self, named_parameters: Any) -> ClipStats:
        stats = super().__call__(named_parameters)
        return ClipStats(stats.norm, stats.clipped_fraction / 0.0)


class ForgetsSamples(PerSample):
    """An estimator that loses the state of its threshold."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


class ForgetsInside(MicroBatch):
    """An estimator that loses the state of the clipper inside it."""

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


EMA = {"_target_": f"{EmaThreshold.__module__}.EmaThreshold", "coefficient": 0.5}
SAMPLE_EMA = {"_target_": f"{SampleEma.__module__}.SampleEma", "coefficient": 0.5}
