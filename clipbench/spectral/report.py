"""What a backend tells about the matrices it clipped."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

LinAlgError = torch.linalg.LinAlgError  # type: ignore[attr-defined]  # what LAPACK and cuSOLVER raise


class SpectralReport(NamedTuple):
    """One entry per matrix, each of shape (matrices,), on the matrices' device.

    sigma_max: largest singular value BEFORE clipping, in float64, as that of a finite float32 matrix may not fit
        float32; NaN where the matrix is not finite.
    count_above: number of singular values above τ (int64).
    left: the matrix is not finite, or every factorisation failed: it was left as it is.
    fell_back: the first method could not show that its answer is right, so a slower one gave it.
    """

    sigma_max: Tensor
    count_above: Tensor
    left: Tensor
    fell_back: Tensor


class MatrixReport(NamedTuple):
    """The same for one matrix, on the host."""

    sigma_max: float
    count_above: int = 0
    left: bool = False
    fell_back: bool = False


LEFT = MatrixReport(float("nan"), 0, True, False)


def gather(reports: Sequence[MatrixReport], device: torch.device) -> SpectralReport:
    """The report of many matrices from those of each, on the host."""
    return SpectralReport(
        torch.tensor([report.sigma_max for report in reports], dtype=torch.float64, device=device),
        torch.tensor([report.count_above for report in reports], dtype=torch.int64, device=device),
        torch.tensor([report.left for report in reports], dtype=torch.bool, device=device),
        torch.tensor([report.fell_back for report in reports], dtype=torch.bool, device=device),
    )
