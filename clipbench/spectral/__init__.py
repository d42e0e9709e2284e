"""Kernels of spectral clipping: functions of matrices that know nothing of models, steps or thresholds."""

from clipbench.spectral.auto import BACKENDS, Backend, choose
from clipbench.spectral.clip import check_backend, clip_matrices_, clip_singular_values
from clipbench.spectral.factored import clip_factored
from clipbench.spectral.newton_schulz import newton_schulz
from clipbench.spectral.randomized import check_setting, randomized_clip, randomized_one_
from clipbench.spectral.report import SpectralReport, gather
from clipbench.spectral.shapes import as_matrix, matrix_shape
from clipbench.spectral.shrink import hard_factored, soft_factored
from clipbench.spectral.soft import soft_matrices_

__all__ = [
    "BACKENDS",
    "Backend",
    "SpectralReport",
    "as_matrix",
    "check_backend",
    "check_setting",
    "choose",
    "clip_factored",
    "clip_matrices_",
    "clip_singular_values",
    "gather",
    "hard_factored",
    "matrix_shape",
    "newton_schulz",
    "randomized_clip",
    "randomized_one_",
    "soft_factored",
    "soft_matrices_",
]
