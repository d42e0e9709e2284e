"""The matrix regression of arXiv 2605.11838 and its clipped sample gradients in closed form.

    F(X) = (1/N) Σ_i (⟨A_i, X⟩ − b_i)²      A_i = Q_i Λ_i Q_iᵀ      b_i = ⟨A_i, X*⟩ + σ ξ_i

Sample i has the gradient 2 (⟨A_i, X⟩ − b_i) A_i = c A_i, whose singular values are |c| Λ_i. Its spectral clip is
Q_i min(|c| Λ_i, τ) sign(c) Q_iᵀ and needs no SVD: in the basis q_ij q_ijᵀ, which is orthonormal, the gradient has the
coordinates c λ_ij and the clip the coordinates clamp(c λ_ij, ±τ).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from clipbench.studies.base import random_generator


class Problem(NamedTuple):
    """Problems of S seeds side by side, float64.

    matrices (S, N, n²) the A_i flattened; eigenvalues (S, N, n) the λ_ij; bases (S, N, n, n²) the q_ij q_ijᵀ;
    targets (S, N) the b_i; rate (S,) the learning rate.
    """

    matrices: np.ndarray
    eigenvalues: np.ndarray
    bases: np.ndarray
    targets: np.ndarray
    rate: np.ndarray


def draw_problem(seed: int, side: int, samples: int, noise: float, rate_factor: float) -> Problem:
    """The problem of one seed, with a leading dimension of 1.

    Every A_i has its OWN orthogonal Q_i (QR of a Gaussian) and Λ_i ~ U(0.5, 1.5); X* is Gaussian, not symmetric. The
    rate is rate_factor / L with L = 2 · mean ‖A_i‖_F².
    """
    draw = random_generator(seed, "data")
    orthogonal = np.linalg.qr(draw.standard_normal((samples, side, side)))[0]
    eigenvalues = draw.uniform(0.5, 1.5, (samples, side))
    solution = draw.standard_normal((side, side))
    bases = np.einsum("iaj,ibj->ijab", orthogonal, orthogonal).reshape(samples, side, side * side)
    matrices = np.einsum("ij,ijm->im", eigenvalues, bases)
    targets = matrices @ solution.ravel() + noise * draw.standard_normal(samples)
    smoothness = 2.0 * np.mean(np.sum(eigenvalues**2, axis=1))
    rate = np.array([rate_factor / smoothness])
    return Problem(matrices[None], eigenvalues[None], bases[None], targets[None], rate)


def side_by_side(problems: list[Problem]) -> Problem:
    """Problems of one size as one, along the first dimension."""
    return Problem(*(np.concatenate(parts) for parts in zip(*problems, strict=True)))


def clip_coordinates(coordinates: np.ndarray, tau: np.ndarray, spectral: int) -> np.ndarray:
    """The clipped gradients' coordinates; (…, R, m, n) from gradients' and thresholds τ (…, R).

    The first `spectral` rules clamp the n coordinates of each of the m gradients to ±τ, the others scale them to a norm
    of τ at most. A zero gradient stays zero.
    """
    clipped = np.empty_like(coordinates)
    bound = tau[..., :spectral, None, None]
    np.maximum(coordinates[..., :spectral, :, :], -bound, out=clipped[..., :spectral, :, :])
    np.minimum(clipped[..., :spectral, :, :], bound, out=clipped[..., :spectral, :, :])
    rest = coordinates[..., spectral:, :, :]
    norms = np.sqrt(np.einsum("...n,...n->...", rest, rest))
    factor = np.minimum(1.0, tau[..., spectral:, None] / np.where(norms > 0, norms, 1.0))
    np.multiply(rest, factor[..., None], out=clipped[..., spectral:, :, :])
    return clipped


class Errors(NamedTuple):
    """Per step and rule, each (S, B, R): `total` the draws' squared error, and its two exact parts.

    bias: ‖∇F − E C‖²; variance: E ‖C − E C‖² of one clipped gradient C; loss: F(X). The mean of m draws has the
    expected squared error bias + variance / m.
    """

    total: np.ndarray
    bias: np.ndarray
    variance: np.ndarray
    loss: np.ndarray


def estimation_errors(
    problem: Problem, points: np.ndarray, tau: np.ndarray, counts: np.ndarray, spectral: int
) -> Errors:
    """How far the mean of clipped sample gradients lies from ∇F at given points.

    points (S, B, R, n²), thresholds tau (S, B, R), counts (S, B, N): how often each sample was drawn. All N clipped
    gradients are formed once and weighted by their counts, so that further draws cost nothing.
    """
    seeds, block, rules, size = points.shape
    samples, side = problem.eigenvalues.shape[1:]
    residual = points.reshape(seeds, block * rules, size) @ problem.matrices.swapaxes(1, 2)
    residual -= problem.targets[:, None, :]
    residual = residual.reshape(seeds, block, rules, samples)
    coordinates = 2.0 * residual[..., None] * problem.eigenvalues[:, None, None]
    clipped = clip_coordinates(coordinates, tau, spectral)
    squares = np.einsum("sbrmn,sbrmn->sbr", clipped, clipped) / samples

    flat_bases = problem.bases.reshape(seeds, samples * side, size)

    def matrices(values: np.ndarray) -> np.ndarray:
        """Σ of coordinates times basis matrices, (S, B, R, n²)."""
        found = values.reshape(seeds, block * rules, samples * side) @ flat_bases
        return found.reshape(seeds, block, rules, size)

    def square(values: np.ndarray) -> np.ndarray:
        return np.einsum("sbrm,sbrm->sbr", values, values)

    gradient, expected = matrices(coordinates) / samples, matrices(clipped) / samples
    weights = counts / counts.sum(axis=-1, keepdims=True)
    drawn = matrices(clipped * weights[:, :, None, :, None])
    loss = np.einsum("sbrm,sbrm->sbr", residual, residual) / samples
    return Errors(square(gradient - drawn), square(gradient - expected), squares - square(expected), loss)
