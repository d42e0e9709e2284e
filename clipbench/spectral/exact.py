"""Exact spectral clipping on the host: arXiv 2605.11838, C_τ(G) = U diag(min(s, τ)) Vᵀ, without an SVD.

For float32 input: relative error (Frobenius norm, against a float64 SVD) ≤ 1e-5, and no value left above τ (1 + 1e-5).
σ_max to 1e-5 as well; where nothing is above τ and many values are within 1e-4 of the largest, one of those.
In order, the first that can show its answer right; small layers begin with 3 (`SMALLEST`):
1. ‖G‖_F ≤ 4 τ, as adaptive thresholds have it, or few rows hold nearly all of ‖G‖_F: block Lanczos iteration on G
   itself (`krylov.py`), certified by what is left of ‖G‖_F;
2. few values above τ: block iteration on the Gram matrix, in float32 up to σ_max/τ = 36, in float64 above, the result
   certified (`certificate.py`); as in 1, only the part above τ is computed and taken off;
3. many: eigendecomposition of the Gram matrix, in float32 up to σ_max/τ = 9, in float64 above;
4. σ_max/τ > 3e4, where ten eps (σ_max/τ)² of float64 pass 2e-6, or a factorisation that fails: SVD in float64.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from clipbench.spectral.certificate import nothing_missed
from clipbench.spectral.gram import LONG, few_times, frobenius, gram, root_of_scale, start
from clipbench.spectral.krylov import dominant
from clipbench.spectral.report import LEFT, LinAlgError, MatrixReport, SpectralReport, gather
from clipbench.spectral.ritz import Goal, Leading
from clipbench.spectral.shapes import wide
from clipbench.spectral.subspace import leading
from clipbench.spectral.svd import clip_by_svd

SINGLE_RATIO = 36.0  # σ_max/τ up to which float32 holds the part above τ to 1e-5
FULL_RATIO = 9.0  # up to which a float32 eigendecomposition of the Gram matrix does
SVD_RATIO = 3e4  # beyond which only an SVD does
BEYOND = 1e12  # ‖G‖_F/τ that is beyond SVD_RATIO whatever the rank
COMPARABLE = 20.0  # times ‖C‖_F: up to there rounding in the product that gives C, some eps ‖G‖_F, leaves its digits
DOMINANT = 10.0  # σ_max/‖C‖_F from which the rounding of the part taken off, some eps σ_max, is taken off too
STEEP = 100.0  # s/τ beyond which rounding in u, some eps s, is more than the error of v
SMALLEST = (96, 160)  # shorter sides below it: a full eigendecomposition costs no more than an iteration; on G, on A
TOLERANCE = {torch.float32: 8e-6, torch.float64: 1e-11}
SAFE = (1e-5, 1e9)  # Frobenius norms whose fourth powers float32 holds, and the squares of residuals beside them


def exact_(matrices: Sequence[Tensor], tau: Tensor, norms: Tensor | None = None) -> SpectralReport:
    """Clip each matrix (n, m) in place to its τ; reads values on the host.

    tau: (len(matrices),). norms: the Frobenius norms, of the same shape, where the caller has them already.
    """
    known = [None] * len(matrices) if norms is None else norms.tolist()
    with torch.inference_mode():  # hundreds of small operations: 3 to 7 % of the time
        reports = [clip_one_(*each) for each in zip(matrices, tau.tolist(), known, strict=True)]
    return gather(reports, tau.device)


def clip_one_(matrix: Tensor, tau: float, norm: float | None = None) -> MatrixReport:
    """Clip one matrix in place, on the host and in float32 or float64; a matrix that is not finite is left."""
    if not tau > 0:  # ≤ 0 or NaN: no goal for an iteration
        return clip_by_svd(matrix, tau)
    work = matrix.to("cpu", matrix.dtype if matrix.dtype in TOLERANCE else torch.float32)
    norm = frobenius(work) if norm is None else norm
    if norm > BEYOND * tau:  # what scales G and τ could lose τ
        return clip_by_svd(matrix, tau)._replace(fell_back=True)
    report = _clip_safe_(work, tau, norm) if SAFE[0] < norm < SAFE[1] else _clip_scaled_(work, tau)
    if work is not matrix and report.count_above:
        matrix.copy_(work)
    return report


def _clip_scaled_(matrix: Tensor, tau: float) -> MatrixReport:
    """`clip_one_` where the norm's powers leave float32: denormal, huge, zero or not finite. Scaled by powers of 2."""
    norm = float(torch.linalg.vector_norm(matrix, dtype=torch.float64))
    if not math.isfinite(norm):
        return LEFT
    if norm == 0:
        return MatrixReport(0.0)
    root = root_of_scale(norm)
    scaled = matrix * root * root
    report = _clip_safe_(scaled, tau * root * root, norm * root * root)
    if report.count_above:
        matrix.copy_(scaled / root / root)
    return report._replace(sigma_max=report.sigma_max / root / root)


def _clip_safe_(matrix: Tensor, tau: float, norm: float) -> MatrixReport:
    """`clip_one_` for float32 or float64 with a norm whose fourth power does not overflow."""
    work = wide(matrix)
    if work.shape[0] == 1:
        norm = float(torch.linalg.vector_norm(work, dtype=torch.float64))
        if norm > tau:
            work.mul_(tau / norm)
        return MatrixReport(norm, int(norm > tau))
    # τ ≥ ‖G‖_F asks for σ_max alone; the margin is for the rounding of the norm.
    goal = Goal(min(tau, norm * (1 + 1e-3)), norm, TOLERANCE[work.dtype])
    try:
        near = work.shape[0] >= SMALLEST[0] and goal.norm <= SINGLE_RATIO * goal.tau
        report = _near(work, goal) if near else None
        if report is None and work.dtype == torch.float32:
            report = _single(work, goal)
        return report or _double(work, goal)
    except LinAlgError:
        return clip_by_svd(work, tau)._replace(fell_back=True)


def _near(work: Tensor, goal: Goal) -> MatrixReport | None:
    """Without a Gram matrix; None where what is left of ‖G‖_F does not show the answer right."""
    found = dominant(work, goal)
    return None if found is None else _clip_found_(work, found, goal)


def _beyond(work: Tensor, goal: Goal, ratio: float) -> bool:
    """Whether σ_max/τ is certainly larger than `ratio`: two power steps give a lower bound of σ_max."""
    if goal.norm <= ratio * goal.tau:
        return False
    right = start(1, work.shape[0], work.dtype) @ work
    left = right @ work.mT
    return float(torch.linalg.vector_norm(left @ work) / torch.linalg.vector_norm(left)) > ratio * goal.tau


def _single(work: Tensor, goal: Goal) -> MatrixReport | None:
    """In float32; None where σ_max/τ is too large for it, or the rows are too long."""
    large = work.shape[0] >= SMALLEST[1]
    if work.shape[1] > LONG or _beyond(work, goal, SINGLE_RATIO if large else FULL_RATIO):
        return None
    product = gram(work)
    # Schatten-4 norm: σ_max ≤ ‖A‖_F^{1/2}, and seldom far from it.
    total = float(torch.linalg.vector_norm(product))
    ratio = math.sqrt(total) / goal.tau
    report = None
    if large and ratio <= SINGLE_RATIO:
        report = _few(work, product, total, goal)
    if report is None and ratio <= FULL_RATIO:
        report = _full(work, product, goal, work)
    return report


def _double(work: Tensor, goal: Goal) -> MatrixReport:
    """In float64, or by SVD."""
    double = work.double()
    product = gram(double)
    total = float(torch.linalg.vector_norm(product))
    ratio = math.sqrt(total) / goal.tau
    if ratio > SVD_RATIO:
        return clip_by_svd(work, goal.tau)._replace(fell_back=True)
    if work.shape[0] >= SMALLEST[1] and (ratio > SINGLE_RATIO or work.dtype == torch.float64):
        report = _few(double, product, total, goal)
        if report is not None:
            if report.count_above and double is not work:
                work.copy_(double)
            return report
    return _full(double, product, goal, work)


def _few(work: Tensor, product: Tensor, total: float, goal: Goal) -> MatrixReport | None:
    """Few values above τ: take them off. None where the method cannot show its answer right."""
    found = leading(work, product, goal._replace(total=total), limit=max(8, work.shape[0] // 6))
    if found is None or not nothing_missed(product, total, found, goal.above):
        return None
    return _clip_found_(work, found, goal)


def _clip_found_(work: Tensor, found: Leading, goal: Goal) -> MatrixReport:
    """Take off the part above τ, in place."""
    if found.above:
        left = found.basis[: found.above]
        right = few_times(left, work) if found.right is None else found.right[: found.above]
        take_off_(work, left, right, goal.tau)
        if found.values[0] > (DOMINANT * goal.clipped(found)) ** 2:
            take_off_(work, left, right, goal.tau, again=True)
    return MatrixReport(math.sqrt(max(found.values[0], 0.0)), found.above)


def take_off_(work: Tensor, left: Tensor, right: Tensor, tau: float, again: bool = False) -> None:
    """G − Σ (s − τ) u vᵀ in place; left: u (k, n), right: s v (k, m).

    again: the same on the result, where uᵀG should be τ v by now, and G v = τ u. What rounding in s v and in u has left
    of them grows with s; in u it matters beyond STEEP τ only, below that v is no better.
    """
    # Of (1 + e) u, or of u leaning to another by e, e s would be left: for s = 30 τ more than the tolerance.
    double = left.double()
    if len(left) == 1 and not again:
        longer = 1.5 - 0.5 * float(torch.linalg.vector_norm(double)) ** 2
        factor = longer * (longer - tau / float(torch.linalg.vector_norm(right)))
        work.addcmul_(left.mT, right, value=-factor)  # half the time of a product with one row
        return
    mend = torch.eye(len(left), dtype=torch.float64, device=left.device).mul_(1.5).addmm_(double, double.mT, alpha=-0.5)
    left, right = (mend @ double).to(left.dtype), mend.to(right.dtype) @ right
    unit = torch.nn.functional.normalize(right, dim=1)
    now = right
    if again:
        steep = torch.linalg.vector_norm(right, dim=1) > STEEP * tau
        work.addmm_(torch.add(work @ unit[steep].mT, left[steep].mT, alpha=-tau), unit[steep], alpha=-1)
        now = few_times(left, work)
    work.addmm_(left.mT, torch.add(now, unit, alpha=-tau), alpha=-1)


def _full(work: Tensor, product: Tensor, goal: Goal, out: Tensor) -> MatrixReport:
    """All eigenpairs of the Gram matrix of `work`; the factor 1 − τ/s acts on those above τ alone. Writes to `out`.

    work: scratch in float64, or `out` itself.
    """
    values, vectors = torch.linalg.eigh(product)
    sigma = values.clamp_min(0).sqrt()
    count = int((values > goal.above).sum())
    if count:
        n = work.shape[0]
        clipped = float(torch.linalg.vector_norm(sigma.clamp_max(goal.tau)))
        largest = goal.norm * min(1.0, goal.tau / max(float(sigma[0]), math.ulp(0.0)))  # ‖G‖_F times the largest factor
        base = out if largest <= COMPARABLE * clipped else work
        left = vectors[:, n - count :]
        scaled = left * (1 - goal.tau / sigma[n - count :])
        if 2 * count <= n and base.dtype == left.dtype:
            base.addmm_(scaled, left.mT @ base, alpha=-1)
        else:  # τ/s as 1 − (1 − τ/s) has to be made before it is rounded
            base = torch.eye(n, dtype=left.dtype).addmm_(scaled, left.mT, alpha=-1).to(base.dtype) @ base
        if base is not out:
            out.copy_(base)
    return MatrixReport(float(sigma[-1]), count)
