"""Norms of gradients of any finite size: no square leaves its dtype, and on an accelerator no value is read."""

from __future__ import annotations

import math

import torch
from torch import Tensor

ROW = 1024  # entries that are summed before the rows' norms are
LONG = 64 * ROW  # entries from which a gradient is summed in rows
PLAIN = (1e-15, 1e18)  # norms whose squares, and those of all entries that count, float32 holds
ONE_STEP = 1e-30  # factors down to which float32 has all digits of them


def readable(tensor: Tensor) -> bool:
    """Whether reading a value waits for nothing: an ordinary tensor on the CPU, not a subclass's (fake, DTensor)."""
    return tensor.device.type == "cpu" and type(tensor) is Tensor


def norms(grads: list[Tensor]) -> Tensor:
    """Vector norm of each gradient, shape (len(grads),), float64; an empty list gives shape (0,).

    Squares of float32 entries above 1.8e19 overflow, and those below 1e-19 vanish: where that may have happened the sum
    is taken in float64, which holds the square of every float32 number. On an accelerator always, since it is bound by
    memory there; on a CPU, where it takes four times as long, for the gradients that need it.
    """
    if not grads:
        return torch.zeros(0, dtype=torch.float64)
    if not all(readable(grad) for grad in grads):
        short = [_shorten(grad, torch.float64) for grad in grads]
        return torch.stack(torch._foreach_norm(short, 2, dtype=torch.float64))
    dtype = torch.float64 if any(grad.dtype == torch.float64 for grad in grads) else torch.float32
    short = [grad if grad.numel() < LONG else _shorten(grad, dtype) for grad in grads]
    found = torch.stack(torch._foreach_norm(short, 2, dtype=dtype)).tolist()
    for place, norm in enumerate(found):
        if not PLAIN[0] < norm < PLAIN[1]:
            found[place] = float(_scaled_norm(grads[place]))
    return torch.tensor(found, dtype=torch.float64)


def _scaled_norm(grad: Tensor) -> Tensor:
    """The norm in float64; of a float64 gradient relative to its largest entry."""
    if not grad.numel():
        return torch.zeros((), dtype=torch.float64)
    unit = grad.abs().amax().double() if grad.dtype == torch.float64 else torch.ones((), dtype=torch.float64)
    if unit == 0 or not torch.isfinite(unit):
        return unit
    return (
        torch.linalg.vector_norm(_shorten(grad / unit if grad.dtype == torch.float64 else grad, torch.float64)) * unit
    )


def _shorten(grad: Tensor, dtype: torch.dtype) -> Tensor:
    """A vector with the gradient's norm: the gradient itself where it is short, the norms of its rows where not.

    On a CPU torch's own float32 norm of 38 million entries (a fully connected layer of AlexNet) is wrong by 3e-3, in
    rows by 3e-7, and rows are twice as fast.
    """
    if grad.numel() < LONG:
        return grad.to(dtype)
    flat = grad.reshape(-1)
    even = grad.numel() - grad.numel() % ROW
    rows = torch.linalg.vector_norm(flat[:even].view(-1, ROW), dim=1, dtype=dtype)
    return torch.cat([rows, flat[even:].to(dtype)])


def total(lengths: Tensor) -> Tensor:
    """Norm of all gradients together from the norms of each, 0-dim; relative to the largest, lest a square overflow."""
    if readable(lengths):
        return torch.tensor(math.hypot(*lengths.tolist()), dtype=torch.float64)
    if not len(lengths):
        return lengths.new_zeros(())
    largest = lengths.amax()
    unit = torch.where((largest > 0) & torch.isfinite(largest), largest, 1.0)
    return torch.linalg.vector_norm(lengths / unit) * unit


def clip_factor(norm: Tensor, tau: Tensor) -> Tensor:
    """min(1, τ/norm) in float64: 1 where the norm is not finite, 0 where τ ≤ 0 < norm, NaN where τ is."""
    if readable(norm) and readable(tau) and norm.ndim == 0:  # a handful of Python's operations for as many kernels
        length, level = float(norm), max(float(tau), 0.0)
        plain = length <= level or not math.isfinite(length)
        return torch.tensor(1.0 if plain else level / length, dtype=torch.float64)
    tau = tau.double().clamp_min(0)
    return torch.where((norm <= tau) | ~torch.isfinite(norm), 1.0, tau / norm)


def scale_(grads: list[Tensor], factor: Tensor) -> None:
    """grads times factor in place; factor: float64, 0-dim for all or (len(grads),), possibly too small for float32.

    A factor as small as that acts in two steps. Without reading it, all do; where reading is free, 1 does nothing.
    """
    if not grads:
        return
    if readable(factor) and factor.ndim == 0:
        for part in _split(float(factor)):
            if part != 1.0:
                torch._foreach_mul_(grads, part)
        return
    if readable(factor):
        values = factor.tolist()
        chosen = [place for place, value in enumerate(values) if value != 1.0]
        for step in (0, 1):
            parts = [_split(values[place])[step] for place in chosen]
            if chosen and (step == 0 or any(part != 1.0 for part in parts)):
                torch._foreach_mul_([grads[place] for place in chosen], parts)
        return
    first = factor.clamp(min=ONE_STEP)
    for share in (first, factor / first):
        torch._foreach_mul_(grads, share if share.ndim == 0 else list(share.unbind()))


def _split(value: float) -> tuple[float, float]:
    """Two factors, each with all its digits in float32."""
    return (ONE_STEP, value / ONE_STEP) if 0 < value < ONE_STEP else (value, 1.0)
