"""Two factors of one product, aᵀδ, in float64, with powers of two that make their rows alike."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from clipbench.spectral.powers import exponent_of, power_of_two

DEAD = -(2**14)  # exponent of a row that is zero, below all others


class Balanced(NamedTuple):
    """A batch of pairs in float64: G = aᵀδ = 2^exponent (left_rows ∘ left)ᵀ (right_rows ∘ right).

    left (B, r, n), right (B, r, m): a and δ, or where these are float64 themselves, with rows brought to 1. left_rows,
    right_rows (B, r): powers of two; times them rows have entries of at most 1 and are of like size on both sides; 0
    where a row is zero in a or δ. back (B, r): δ = back ∘ right. exponent (B,). finite (B,).
    """

    left: Tensor
    right: Tensor
    left_rows: Tensor
    right_rows: Tensor
    back: Tensor
    exponent: Tensor
    finite: Tensor

    def grams(self) -> tuple[Tensor, Tensor]:
        """K_A and K_B of the scaled rows, (B, r, r)."""
        left, right = self.left @ self.left.mT, self.right @ self.right.mT
        # Row by row and column by column: the product of two powers may leave float64.
        left = left * self.left_rows[:, :, None] * self.left_rows[:, None, :]
        return left, right * self.right_rows[:, :, None] * self.right_rows[:, None, :]

    def scaled(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Both scaled factors of these members."""
        left, right = (factor.index_select(0, rows) for factor in (self.left, self.right))
        return left.mul_(self.left_rows[rows][..., None]), right.mul_(self.right_rows[rows][..., None])


def balanced(a: Tensor, delta: Tensor) -> Balanced:
    """A row of a times c and that row of δ over c leave G as it is; c = 2^k makes both alike."""
    first, second = (factor.abs().amax(2) for factor in (a, delta))
    finite = torch.isfinite(first).all(1) & torch.isfinite(second).all(1)
    alive = (first > 0) & (second > 0) & finite[:, None]
    powers = exponent_of(first), exponent_of(second)
    size = torch.where(alive, powers[0] + powers[1], DEAD)
    exponent = size.amax(1)
    below = size - exponent[:, None]
    shares = below // 2, below - below // 2
    if a.dtype == torch.float64:  # whose squares may leave it
        units = [power_of_two(-power, torch.float64) for power in powers]
        left, right = a * units[0][..., None], delta * units[1][..., None]
        back, rows = 1 / units[1], shares
    else:
        left, right = a.double(), delta.double()
        back, rows = torch.ones_like(first, dtype=torch.float64), (shares[0] - powers[0], shares[1] - powers[1])
    scales = [torch.where(alive, power_of_two(power, torch.float64), 0.0) for power in rows]
    return Balanced(left, right, scales[0], scales[1], back, exponent, finite)
