"""clipbench: a reproducible benchmark suite for gradient clipping in deep learning.

The clippers, thresholds, weights and kernels are here, for anybody's own loop; each is loaded, and torch with it, when
it is asked for:

    from clipbench import NormClip, PerSampleClipper, PowerThreshold, SpectralClip
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from clipbench.clipping import AdaGC as AdaGC
    from clipbench.clipping import AdaptiveGradientClip as AdaptiveGradientClip
    from clipbench.clipping import AutoClip as AutoClip
    from clipbench.clipping import Chain as Chain
    from clipbench.clipping import Clipper as Clipper
    from clipbench.clipping import ClipStats as ClipStats
    from clipbench.clipping import ConstantThreshold as ConstantThreshold
    from clipbench.clipping import DeltaClip as DeltaClip
    from clipbench.clipping import EmaThreshold as EmaThreshold
    from clipbench.clipping import ErrorFeedback as ErrorFeedback
    from clipbench.clipping import MixClip as MixClip
    from clipbench.clipping import NoClip as NoClip
    from clipbench.clipping import NormalizedUpdate as NormalizedUpdate
    from clipbench.clipping import NormClip as NormClip
    from clipbench.clipping import PerTensorNorm as PerTensorNorm
    from clipbench.clipping import QuantileThreshold as QuantileThreshold
    from clipbench.clipping import RmsClip as RmsClip
    from clipbench.clipping import SmoothClip as SmoothClip
    from clipbench.clipping import SoftSpectralClip as SoftSpectralClip
    from clipbench.clipping import SpectralClip as SpectralClip
    from clipbench.clipping import SpikeClip as SpikeClip
    from clipbench.clipping import StableSpikeClip as StableSpikeClip
    from clipbench.clipping import Threshold as Threshold
    from clipbench.clipping import ValueClip as ValueClip
    from clipbench.clipping import ZClip as ZClip
    from clipbench.estimators import SampleEma as SampleEma
    from clipbench.estimators import SampleQuantile as SampleQuantile
    from clipbench.estimators import SampleShare as SampleShare
    from clipbench.per_sample import AdaptiveWeight as AdaptiveWeight
    from clipbench.per_sample import AutomaticWeight as AutomaticWeight
    from clipbench.per_sample import NormalizedWeight as NormalizedWeight
    from clipbench.per_sample import PerSampleClipper as PerSampleClipper
    from clipbench.per_sample import PowerThreshold as PowerThreshold
    from clipbench.per_sample import SampleClipStats as SampleClipStats
    from clipbench.per_sample import SmoothWeight as SmoothWeight
    from clipbench.per_sample import freeze_batch_statistics as freeze_batch_statistics
    from clipbench.spectral import clip_factored as clip_factored
    from clipbench.spectral import clip_singular_values as clip_singular_values
    from clipbench.spectral import randomized_clip as randomized_clip
    from clipbench.suggestion import suggest as suggest

__version__ = "0.1.0"

_ROOMS = {
    "clipbench.clipping": (
        "AdaGC", "AdaptiveGradientClip", "AutoClip", "Chain", "ClipStats", "Clipper", "ConstantThreshold", "DeltaClip",
        "EmaThreshold", "ErrorFeedback", "MixClip", "NoClip", "NormClip", "NormalizedUpdate", "PerTensorNorm",
        "QuantileThreshold", "RmsClip", "SmoothClip", "SoftSpectralClip", "SpectralClip", "SpikeClip",
        "StableSpikeClip", "Threshold", "ValueClip", "ZClip",
    ),
    "clipbench.estimators": (
        "SampleEma", "SampleQuantile", "SampleShare",
    ),
    "clipbench.per_sample": (
        "AdaptiveWeight", "AutomaticWeight", "NormalizedWeight", "PerSampleClipper", "PowerThreshold",
        "SampleClipStats", "SmoothWeight", "freeze_batch_statistics",
    ),
    "clipbench.spectral": (
        "clip_factored", "clip_singular_values", "randomized_clip",
    ),
    "clipbench.suggestion": (
        "suggest",
    ),
}  # fmt: skip


def __getattr__(name: str) -> object:
    """A public name, from its room (PEP 562)."""
    import importlib

    for room, names in _ROOMS.items():
        if name in names:
            return globals().setdefault(name, getattr(importlib.import_module(room), name))
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *(name for names in _ROOMS.values() for name in names)})
