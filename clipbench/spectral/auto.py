"""Which backend `auto` means: a pure function of what is known before any value is read."""

from __future__ import annotations

from typing import Literal, get_args

import torch

Backend = Literal["auto", "exact", "svd", "randomized", "newton_schulz"]
BACKENDS: tuple[str, ...] = get_args(Backend)


def choose(shape: tuple[int, int], dtype: torch.dtype, device_type: str, adaptive: bool) -> Backend:
    """The backend for matrices of this shape and dtype, on this type of device, under a threshold rule.

    On a CPU `exact`, which keeps to 1e-5 at every threshold and certifies it: with few values above τ up to 70 times
    faster than a float32 SVD, with many of them at worst (128 × 128) 1.4 times slower. `randomized` with a basis from
    the step before can be faster where few values are above τ, but does not show what it misses.
    `newton_schulz` gains nothing there (`python -m clipbench.bench spectral`). On an accelerator `newton_schulz`:
    factorisations wait for the device there, matrix products do not. A float64 matrix on an accelerator means that the
    caller wants digits, and an accelerator without float64 (mps) has no products for it: `exact`, on the host.
    """
    if device_type in ("cpu", "mps") or dtype == torch.float64:
        return "exact"
    return "newton_schulz"
