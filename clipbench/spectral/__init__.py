"""Kernels of spectral clipping: functions of matrices that know nothing of models, steps or thresholds.

Read in this order:
1. `clip.py`, the entry to all backends; `auto.py`, which one `auto` means; `report.py`, what they tell; `shapes.py`.
2. `svd.py`: the method as it is written. All others are ways to its result.
3. `exact.py`, and what it stands on: `gram.py` (products), `ritz.py` (the error of what an iteration found),
   `krylov.py` and `subspace.py` (two iterations), `certificate.py` (the proof that nothing above τ was missed).
4. `newton_schulz.py` with `polynomials.py` and `powers.py`: products alone. `randomized.py`: the paper's truncated SVD.
5. `soft.py`: values damped instead of cut.
6. `factored.py`, for a product that is never formed: `balance.py`, `product_batch.py`, `top_pair.py`, `core.py`.

Which path takes which matrix, by `auto` (n ≤ m its sides, σ₁ its largest singular value):

| matrix | path | where |
| --- | --- | --- |
| on the CPU, one side is 1 | its norm | clippers themselves, `exact._clip_safe_` |
| on the CPU, ‖G‖_F ≤ τ, constant threshold | left as it is | `SpectralClip.clip_matrices` |
| on the CPU, n ≥ 96, ‖G‖_F ≤ 36 τ, few rows hold most of it | block Lanczos on G | `exact._near` |
| on the CPU, n ≥ 160, few values above τ | block iteration on G Gᵀ (float64 from σ₁/τ = 36) | `exact._few` |
| on the CPU, many values above τ, or n < 160 | eigendecomposition of G Gᵀ (float64 from σ₁/τ = 9) | `exact._full` |
| on the CPU, σ₁/τ > 3e4, or a factorisation failed | SVD in float64 | `svd.clip_by_svd` |
| float64 on an accelerator; any on mps | as on the CPU | `exact` |
| on any other accelerator | matrix products in float64, no value read | `newton_schulz` |
| not finite | left as it is, σ_max is NaN | everywhere |
"""

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
