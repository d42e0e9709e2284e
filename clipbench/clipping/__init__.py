"""Clippers: rules on the named gradients, and the thresholds they share."""

from clipbench.clipping.adagc import AdaGC
from clipbench.clipping.agc import AdaptiveGradientClip
from clipbench.clipping.autoclip import AutoClip
from clipbench.clipping.base import Clipper, ClipStats
from clipbench.clipping.chain import Chain
from clipbench.clipping.elementwise import SpikeClip, StableSpikeClip
from clipbench.clipping.none import NoClip
from clipbench.clipping.norm import NormClip
from clipbench.clipping.per_tensor_norm import PerTensorNorm
from clipbench.clipping.smooth import DeltaClip, ErrorFeedback, SmoothClip
from clipbench.clipping.soft_spectral import SoftSpectralClip
from clipbench.clipping.spectral import SpectralClip
from clipbench.clipping.thresholds import ConstantThreshold, EmaThreshold, QuantileThreshold, Threshold
from clipbench.clipping.updates import MixClip, NormalizedUpdate, RmsClip
from clipbench.clipping.value import ValueClip
from clipbench.clipping.zclip import ZClip

__all__ = [
    "AdaGC",
    "AdaptiveGradientClip",
    "AutoClip",
    "Chain",
    "ClipStats",
    "Clipper",
    "ConstantThreshold",
    "DeltaClip",
    "EmaThreshold",
    "ErrorFeedback",
    "MixClip",
    "NoClip",
    "NormClip",
    "NormalizedUpdate",
    "PerTensorNorm",
    "QuantileThreshold",
    "RmsClip",
    "SmoothClip",
    "SoftSpectralClip",
    "SpectralClip",
    "SpikeClip",
    "StableSpikeClip",
    "Threshold",
    "ValueClip",
    "ZClip",
]
