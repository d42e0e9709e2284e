"""What a way of computing per-sample norms costs: arithmetic and memory traffic, in one unit.

A matrix product runs at some FLOPs per second, everything else at some bytes per second; only the quotient of
the two matters for a choice. `FLOPS_PER_BYTE` = 12 is what we measured on a server core (about 90 GFLOP/s in a
blocked product of a few hundred rows against 7 GB/s for a tensor that leaves the cache); accelerators have more
arithmetic for each byte, which moves the choice further to the Gram form, already ahead there.
Costs are for one sample; every function returns FLOP equivalents.
"""

from __future__ import annotations

FLOPS_PER_BYTE = 12.0
CHUNK_BYTES = 1 << 20
"""Working set of one chunk of samples on a CPU: half of a server core's second-level cache."""
DEVICE_CHUNK_BYTES = 1 << 28
"""The same on an accelerator, where few large launches count for more than a cache."""


def gram_cost(positions: int, left: int, right: int, itemsize: int = 4) -> float:
    """Two Gram matrices (positions, positions) of factors (positions, left) and (positions, right)."""
    flops = 2.0 * positions * positions * (left + right + 1)
    traffic = itemsize * (positions * (left + right) + 4.0 * positions * positions)
    return flops + FLOPS_PER_BYTE * traffic


def instance_cost(positions: int, left: int, right: int, itemsize: int = 4) -> float:
    """The sample's own gradient (left, right), written and read once, and summed over its squares."""
    flops = 2.0 * positions * left * right + 2.0 * left * right
    traffic = itemsize * (positions * (left + right) + 2.0 * left * right)
    return flops + FLOPS_PER_BYTE * traffic


def position_gram_cost(area: int, positions: int, taps: int, channels_in: int, channels_out: int) -> float:
    """A convolution's Gram form from the (area, area) Gram matrix of its input, summed over taps, nothing unfolded."""
    grams = gram_cost(area, channels_in, 0) + gram_cost(positions, channels_out, 0)
    as_matrix = 2.0 * area**2 * positions**2
    as_slices = FLOPS_PER_BYTE * 12.0 * taps * positions**2
    return grams + min(as_matrix, as_slices)


def prefers_taps(pairs: int, all_pairs: int, channels_in: int, channels_out: int) -> bool:
    """Whether a weight gradient is cheaper tap by tap over the `pairs` (output, tap) that do not meet padding.

    The library's kernel treats `all_pairs`; going by taps gathers rows of both sides for each tap, and is taken
    where it wins clearly.
    """
    by_taps = 2.0 * pairs * channels_in * channels_out
    by_taps += FLOPS_PER_BYTE * 8.0 * pairs * (channels_in + channels_out)
    return by_taps < 0.8 * 2.0 * all_pairs * channels_in * channels_out


def chunk_size(bytes_per_sample: float, device_type: str) -> int:
    """Samples to treat at once so that their working set stays in the cache (at least one)."""
    budget = CHUNK_BYTES if device_type == "cpu" else DEVICE_CHUNK_BYTES
    return max(1, int(budget // max(bytes_per_sample, 1.0)))
