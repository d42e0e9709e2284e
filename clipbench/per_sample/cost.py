"""What a way of computing per-sample norms costs: arithmetic and memory traffic, in one unit.

A matrix product runs at some FLOPs per second, everything else at some bytes per second; only the quotient of the two
matters for a choice. Measured on a server core (about 100 GFLOP/s in a product): 2 FLOPs for a byte that stays in the
second-level cache, 12 for one that leaves it. Accelerators have more arithmetic for each byte, which favours the Gram
form, where it is ahead here, even more. Costs are for one sample, in FLOPs.
"""

from __future__ import annotations

CACHED = 2.0
"""FLOPs in the time of moving one byte within the cache."""
UNCACHED = 12.0
"""FLOPs in the time of moving one byte to or from memory."""
DOUBLE = 2.0
"""What float64 costs over float32 in a product, on CPUs and data centres' accelerators."""
CHUNK_BYTES = 1 << 21
"""Working set of one chunk of samples on a CPU: a server core's second-level cache."""
DEVICE_CHUNK_BYTES = 1 << 28
"""The same on an accelerator, where few large launches count for more than a cache."""

SUBGRAPH_BYTES = 1 << 26
"""Working set of one chunk of samples that goes through a part of the graph: each chunk costs a walk through it."""


def traffic_cost(moved: float, held: float) -> float:
    """Moving `moved` bytes to and from a working set of `held` bytes."""
    return moved * (CACHED if held <= CHUNK_BYTES else UNCACHED)


def gram_cost(positions: int, left: int, right: int, itemsize: int = 4) -> float:
    """Two Gram matrices (positions, positions) of factors (positions, left) and (positions, right)."""
    flops = 2.0 * positions * positions * (left + right + 1)
    grams = itemsize * positions * positions
    return flops + traffic_cost(4.0 * grams, 2.0 * grams)


def instance_cost(positions: int, left: int, right: int, itemsize: int = 4) -> float:
    """The sample's own gradient (left, right): formed, and read again for its norm."""
    flops = 2.0 * positions * left * right + 2.0 * left * right
    entries = itemsize * left * right
    return flops + traffic_cost(2.0 * entries, entries)


def position_gram_cost(area: int, positions: int, taps: int, channels_in: int, channels_out: int) -> float:
    """A convolution's Gram form from the (area, area) Gram matrix of its input, summed over taps, nothing unfolded."""
    grams = gram_cost(area, channels_in, 0) + gram_cost(positions, channels_out, 0)
    as_matrix = 2.0 * area**2 * positions**2
    as_slices = traffic_cost(12.0 * taps * positions**2, 8.0 * positions**2) * 3  # one pass over strided slices a tap
    return grams + min(as_matrix, as_slices)


def prefers_taps(pairs: int, all_pairs: int, channels_in: int, channels_out: int) -> bool:
    """Whether a weight gradient is cheaper tap by tap over the `pairs` (output, tap) that do not meet padding.

    The library's kernel treats `all_pairs`; going by taps gathers rows of both sides for each tap, and is taken
    where it wins clearly.
    """
    by_taps = 2.0 * pairs * channels_in * channels_out
    by_taps += UNCACHED * 8.0 * pairs * (channels_in + channels_out)
    return by_taps < 0.8 * 2.0 * all_pairs * channels_in * channels_out


def prefers_folding(gradients: int, maps: int) -> bool:
    """Whether all per-sample gradients of a convolution (entries) are to be formed by one call with samples as groups.

    That costs what the weight's plain gradient does, and serves for the sum as well, as long as the gradients are few
    beside the entries of its input and output. Measured: level at twice as many, ahead by 10 × for depthwise kernels.
    """
    return gradients <= 1.5 * maps


def chunk_size(bytes_per_sample: float, device_type: str) -> int:
    """Samples to treat at once so that their working set stays in the cache (at least one)."""
    budget = CHUNK_BYTES if device_type == "cpu" else DEVICE_CHUNK_BYTES
    return max(1, int(budget // max(bytes_per_sample, 1.0)))
