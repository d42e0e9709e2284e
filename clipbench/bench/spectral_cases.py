"""What the spectral kernels are timed on: layer shapes, spectra, thresholds; and the methods."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from clipbench.spectral import clip_singular_values, randomized_clip

# (rows, columns) of the layers that are clipped, by the model they come from.
SHAPES: dict[str, tuple[tuple[int, int], ...]] = {
    "alexnet": ((64, 363), (192, 1600), (384, 1728), (256, 3456), (256, 2304)),
    "transformer": ((128, 128), (384, 128), (512, 128), (128, 512)),
    "gpt2": ((768, 768), (768, 3072), (3072, 768), (50257, 768)),
}
PAPER = (10, 5, 1)  # rank, oversampling, power iterations: the paper's setting for CIFAR-10
HUGE = 10**7  # entries of a matrix from which one spectrum and few rounds have to do
Clip = Callable[[], Tensor]


class Case(NamedTuple):
    """One matrix and one threshold; `expected` is the float64 SVD's answer, `above` the values over τ."""

    shape: tuple[int, int]
    spectrum: str
    level: str
    matrix: Tensor
    similar: Tensor  # the "previous step's" matrix, for warm starts
    tau: float
    ratio: float
    above: int
    expected: Tensor


def bulk(n: int) -> Tensor:
    """Flat bulk in [0.5, 1] with outliers, 1 % of the values but at least 3, up to 30."""
    sigma = torch.linspace(1.0, 0.5, n, dtype=torch.float64)
    outliers = max(3, n // 100)
    sigma[:outliers] = torch.logspace(math.log10(30), math.log10(3), outliers, dtype=torch.float64)
    return sigma


def power_law(n: int) -> Tensor:
    """1/i."""
    return 1 / torch.arange(1, n + 1, dtype=torch.float64)


def matrix_with(sigma: Tensor, shape: tuple[int, int], draws: torch.Generator) -> Tensor:
    """A float32 matrix with these singular values and random directions."""
    left = torch.linalg.qr(torch.randn(shape[0], len(sigma), generator=draws, dtype=torch.float64)).Q
    right = torch.linalg.qr(torch.randn(shape[1], len(sigma), generator=draws, dtype=torch.float64)).Q
    return ((left * sigma) @ right.mT).float()


def levels(sigma: Tensor) -> dict[str, float]:
    """The thresholds: near σ_max, as adaptive rules keep them; at most 5 % above within σ_max/τ ≤ 30; and far below."""
    top, count = float(sigma[0]), max(1, int(0.05 * len(sigma)))
    return {
        "σ_max/1.01": top / 1.01,
        "σ_max/1.25": top / 1.25,
        "10 above": float(sigma[min(10, len(sigma) // 8)]) * 1.001,
        "5 % above": max(float(sigma[count]) * 1.001, top / 30),
        "half above": float(sigma[len(sigma) // 2]) * 1.001,
        "σ_max/100": top / 100,
        "σ_max/1e4": top / 1e4,
    }


def cases(shape: tuple[int, int], real: list[Tensor] | None, smoke: bool) -> list[Case]:
    """All cases of one shape. real: two consecutive gradients of that shape from a training run, if there are any."""
    draws = torch.Generator().manual_seed(0)
    n = min(shape)
    matrices: dict[str, list[Tensor]] = {}
    for name, sigma in (("flat bulk", bulk(n)), ("power law", power_law(n))):
        if name == "flat bulk" and shape[0] * shape[1] > HUGE:
            continue
        matrix = matrix_with(sigma, shape, draws)
        # The scale of the step-to-step change of a real gradient's leading directions: |cos| about 0.9.
        change = torch.randn(matrix.shape, generator=draws) * float(sigma[0]) * 0.3 / math.sqrt(max(shape))
        matrices[name] = [matrix + change, matrix]
    if real is not None:
        matrices["real gradient"] = real
    found = []
    for name, (similar, matrix) in matrices.items():
        left, sigma, right = torch.linalg.svd(matrix.double(), full_matrices=False)
        for level, tau in levels(sigma).items():
            if (smoke or shape[0] * shape[1] > HUGE) and level not in ("σ_max/1.25", "5 % above"):
                continue
            expected = (left * sigma.clamp_max(tau)) @ right
            above, ratio = int((sigma > tau).sum()), float(sigma[0]) / tau
            found.append(Case(shape, name, level, matrix, similar, tau, ratio, above, expected))
    return found


def lapack(matrix: Tensor) -> Tensor:
    """The baseline: torch.linalg.svd in float32, without putting the clipped matrix together."""
    return torch.linalg.svd(matrix, full_matrices=False)[1]


def low_rank(matrix: Tensor, tau: float) -> Tensor:
    """torch.svd_lowrank with the paper's setting, and the correction."""
    rank, oversample, iterations = PAPER
    left, sigma, right = torch.svd_lowrank(matrix, min(rank + oversample, *matrix.shape), iterations)
    left, sigma, right = left[:, :rank], sigma[:rank], right[:, :rank]
    return matrix + (left * (sigma.clamp_max(tau) - sigma)) @ right.mT


def methods(case: Case) -> dict[str, Clip]:
    """The callables of one case, each from the matrix to a new clipped one."""
    matrix, tau = case.matrix, case.tau
    basis = randomized_clip(case.similar, tau)[2]
    calls: dict[str, Clip] = {
        "svd": lambda: lapack(matrix),
        "exact": lambda: clip_singular_values(matrix, tau, "exact")[0],
        "newton_schulz": lambda: clip_singular_values(matrix, tau, "newton_schulz")[0],
    }
    # A truncated method is for few values above τ; with many it is no clip at all.
    if case.above <= 10:
        calls |= {
            "svd_lowrank": lambda: low_rank(matrix, tau),
            "randomized": lambda: randomized_clip(matrix, tau)[0],
            "randomized, warm": lambda: randomized_clip(matrix, tau, basis=basis)[0],
        }
    return calls


def error(found: Tensor, case: Case) -> float:
    """‖found − expected‖_F / ‖expected‖_F."""
    difference = torch.linalg.vector_norm(found.double() - case.expected)
    return float(difference / torch.linalg.vector_norm(case.expected))
