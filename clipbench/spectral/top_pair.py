"""The top singular pair of G = leftᵀ right, which is never formed, and a bound on all others, from two Gram matrices.

M = K_A K_B, (r, r), over ‖G‖_F²: its eigenvalues are σ² / ‖G‖_F². For a pair with K_B w = y and wᵀy = 1,
M' = M − K_A y yᵀ is that of G less its part along v, and σ₂² ≤ tr(M'ᵖ)^{1/p} for every p: p = 1 is ‖G‖_F² − σ₁², and
4 does for flat spectra.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

STEPS = 10  # power steps at each look
SQUARINGS = 4  # of M⁴ for the second look, so that its steps are of M⁶⁴
ROUNDING = 16  # in units of eps (tr K_A · tr K_B / ‖G‖_F²)², what M' may be off by
TINY = torch.finfo(torch.float64).tiny


class TopPair(NamedTuple):
    """w, (B, r), gives v = rightᵀw / √length. image: K_B w. theta: ‖G v‖². residual: ‖GᵀG v − θ v‖. rest: ≥ σ₂²."""

    vector: Tensor
    image: Tensor
    length: Tensor
    theta: Tensor
    residual: Tensor
    rest: Tensor


class Powers:
    """M and M⁴ of a batch; grams (B, r, r) float64, total = ‖G‖_F² (B,)."""

    def __init__(self, grams: tuple[Tensor, Tensor], total: Tensor) -> None:
        self.grams, self.total = grams, total.clamp_min(TINY)
        self.product = grams[0] @ grams[1] / self.total[:, None, None]
        square = self.product @ self.product
        self.power = square @ square
        sizes = [gram.diagonal(dim1=1, dim2=2).sum(1) for gram in grams]
        self.slack = ROUNDING * torch.finfo(torch.float64).eps * (sizes[0] * sizes[1] / self.total).square()

    def rest(self, rows: Tensor | slice, again: Tensor, image: Tensor, length: Tensor) -> Tensor:
        """Upper bound of σ₂² (B,) once the pair with y = image, K_A y = again is taken off."""
        total = self.total[rows]
        left = torch.addcmul(self.product[rows], (again / (-length * total)[:, None])[..., None], image[:, None, :])
        square = left @ left
        bounds = left.diagonal(dim1=1, dim2=2).sum(1), (left * left.mT).sum((1, 2)), (square * square.mT).sum((1, 2))
        roots = [bound.clamp_min(0) ** (1 / order) for bound, order in zip(bounds, (1, 2, 4), strict=True)]
        return (torch.stack(roots).amin(0) + self.slack[rows]) * total


def times(matrix: Tensor, vector: Tensor) -> Tensor:
    """(B, r, r) · (B, r), as a sum of products: for small r in half the time of torch.bmm."""
    return (matrix * vector[:, None, :]).sum(-1)


def _steps(power: Tensor, vector: Tensor) -> Tensor:
    for _ in range(STEPS):
        vector = times(power, vector)
    return vector / vector.abs().amax(1, keepdim=True).clamp_min(TINY)


def _pair(powers: Powers, rows: Tensor | slice, vector: Tensor) -> TopPair:
    left, right = powers.grams[0][rows], powers.grams[1][rows]
    image = times(right, vector)
    length = (vector * image).sum(1).clamp_min(TINY)
    again = times(left, image)
    theta = (image * again).sum(1) / length
    change = again - theta[:, None] * vector
    residual = ((change * times(right, change)).sum(1) / length).clamp_min(0).sqrt()
    return TopPair(vector, image, length, theta, residual, powers.rest(rows, again, image, length))


def first_look(powers: Powers) -> TopPair:
    """From the column of M⁴ with the largest diagonal entry, by steps of M⁴."""
    column = powers.power.diagonal(dim1=1, dim2=2).argmax(1)
    start = powers.power.gather(2, column[:, None, None].expand(-1, powers.power.shape[1], 1))[..., 0]
    return _pair(powers, slice(None), _steps(powers.power, start))


def second_look(powers: Powers, found: TopPair, rows: Tensor) -> TopPair:
    """`found`, with the pairs of these members from higher powers."""
    power = powers.power[rows]
    for _ in range(SQUARINGS):
        power = power @ power
        power = power / power.diagonal(dim1=1, dim2=2).sum(1).clamp_min(TINY)[:, None, None]
    better = _pair(powers, rows, _steps(power, found.vector[rows]))
    return TopPair(*(old.index_copy(0, rows, new) for old, new in zip(found, better, strict=True)))
