"""Powers of two: scaling by them is exact, and needs no value on the host."""

from __future__ import annotations

import torch
from torch import Tensor

# Integer type of the same width, bits of the fraction, bias of the exponent.
LAYOUT = {torch.float32: (torch.int32, 23, 127), torch.float64: (torch.int64, 52, 1023)}


def power_of_two(exponent: Tensor, dtype: torch.dtype) -> Tensor:
    """2^exponent in float32 or float64, exactly, for integers; exponents are cut to the dtype's normal numbers.

    Made from bits: torch.exp2 need not be exact, and torch.ldexp forms its power in float32.
    """
    kind, fraction, bias = LAYOUT[dtype]
    return ((exponent.to(kind) + bias).clamp(1, 2 * bias) << fraction).view(dtype)


def exponent_of(value: Tensor) -> Tensor:
    """e with 2^(e−1) ≤ |value| < 2^e, int32; 0 for zero and for what is not finite."""
    return torch.frexp(value.nan_to_num(0.0, 0.0, 0.0)).exponent


def times_power(value: Tensor, exponent: Tensor) -> Tensor:
    """value · 2^exponent, in two steps since 2^exponent alone may leave the dtype; exponent broadcasts."""
    half = exponent // 2
    return value * power_of_two(half, value.dtype) * power_of_two(exponent - half, value.dtype)
