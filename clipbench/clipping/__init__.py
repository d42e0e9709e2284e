"""Clippers: rules on the named gradients, and the thresholds they share."""

from clipbench.clipping.base import Clipper, ClipStats
from clipbench.clipping.none import NoClip
from clipbench.clipping.norm import NormClip
from clipbench.clipping.per_tensor_norm import PerTensorNorm
from clipbench.clipping.soft_spectral import SoftSpectralClip
from clipbench.clipping.spectral import SpectralClip
from clipbench.clipping.thresholds import ConstantThreshold, EmaThreshold, QuantileThreshold, Threshold
from clipbench.clipping.value import ValueClip

__all__ = [
    "ClipStats",
    "Clipper",
    "ConstantThreshold",
    "EmaThreshold",
    "NoClip",
    "NormClip",
    "PerTensorNorm",
    "QuantileThreshold",
    "SoftSpectralClip",
    "SpectralClip",
    "Threshold",
    "ValueClip",
]
