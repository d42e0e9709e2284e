"""A batch of products leftᵀ right in float64 on the host, sorted by what each needs."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from clipbench.spectral.balance import Balanced
from clipbench.spectral.core import cholesky, core_by_gram, core_by_svd
from clipbench.spectral.top_pair import Powers, TopPair, first_look, second_look

CANCELLED = 8.0  # tolerances that rounding in the factors may cost their product, where its terms cancel
SIGMA = 20.0  # tolerances allowed in σ_max²
NEAR = 1e-9  # ‖GᵀG v − θ v‖/θ below which another look would find nothing new
SQUARED = 4.0  # times eps tr K_A tr K_B: rounding in the squares of singular values


class Sorted(NamedTuple):
    """Members by kind, as positions: σ₁ `alone` is above τ, with its pair; several may be; σ_max alone is unknown."""

    alone: Tensor
    top: TopPair
    several: Tensor
    unknown: Tensor


class ProductBatch:
    """pair: the products; tau (B,): scaled as they are; tolerance: error wanted relative to ‖C‖_F, for factors that are
    rounded to eps. sigma: σ_max of each, scaled; NaN where it is not known.
    """

    def __init__(self, pair: Balanced, tau: Tensor, tolerance: float, eps: float) -> None:
        self.pair, self.tau, self.tolerance, self.eps = pair, tau, tolerance, eps
        self.grams = pair.grams()
        self.total = (self.grams[0] * self.grams[1]).sum((1, 2))
        self.sigma = torch.full_like(tau, math.nan)

    def sort(self, measure: bool) -> Sorted | None:
        """Look at those with ‖G‖_F > τ, at all if σ_max is wanted of all; None where there is nothing to look at."""
        active = self.total > self.tau.square()
        rows = (self.pair.finite if measure else active & self.pair.finite).nonzero()[:, 0]
        if not len(rows):
            return None
        active, tau = active[rows], self.tau[rows]
        powers = Powers((self.grams[0][rows], self.grams[1][rows]), self.total[rows])
        top = first_look(powers)
        unclear = (~self._shown(top, tau) & (top.residual > NEAR * top.theta)).nonzero()[:, 0]
        if len(unclear):
            top = second_look(powers, top, unclear)
        shown = self._shown(top, tau)
        self.sigma[rows] = top.theta.clamp_min(0).sqrt()
        above = active & ~(shown & (top.theta <= tau.square()))
        alone = (above & shown).nonzero()[:, 0]
        chosen = TopPair(*(column[alone] for column in top))
        return Sorted(rows[alone], chosen, rows[above & ~shown], rows[~above & ~shown])

    def _shown(self, top: TopPair, tau: Tensor) -> Tensor:
        """Whether the pair is all there is above τ, and near enough; where none is above, near enough for σ_max.

        With all else ≤ τ an error ρ = ‖GᵀG v − θ v‖ reaches C by √2 ρ/σ₁ at most (`ritz.py`). θ is off by ρ² over the
        distance to the next, or by ρ at most.
        """
        only = top.rest <= tau.square() * (1 + self.tolerance)
        near = math.sqrt(2) * top.residual <= self.tolerance * tau * top.theta.sqrt()
        gap = (top.theta - top.rest).clamp_min(0)
        allowed = SIGMA * self.tolerance
        measured = (top.residual <= allowed * top.theta) | (top.residual.square() <= allowed * top.theta * gap)
        return torch.where(top.theta > tau.square(), only & near, only & measured)

    def without_top(self, rows: Tensor, top: TopPair) -> tuple[Tensor, Tensor]:
        """δ' with aᵀδ' = C for members with σ₁ alone above τ, and where the terms of that do not cancel too much.

        With scaled rows G v vᵀ = leftᵀ (K_B w)(wᵀ right) / length, so that a may stay.
        """
        tau, pair = self.tau[rows], self.pair
        scale = pair.right_rows[rows]
        taken = (1 - tau / top.theta.sqrt()) / top.length
        right = pair.right.index_select(0, rows)
        part = (top.vector * scale)[:, None, :] @ right
        unscaled = torch.where(scale > 0, -taken[:, None] * top.image / scale, 0.0)
        right = right.addcmul_(unscaled[..., None], part)
        lengths = self.grams[0][rows].diagonal(dim1=1, dim2=2).sqrt() * scale
        terms = (lengths * torch.linalg.vector_norm(right, dim=2)).sum(1)
        clipped = (self.total[rows] - top.theta).clamp_min(0) + tau.square()
        return right.mul_(pair.back[rows][..., None]), self.eps * terms <= CANCELLED * self.tolerance * clipped.sqrt()

    def cores(self, rows: Tensor) -> list[tuple[Tensor, Tensor, Tensor]]:
        """(members, a', δ') in groups, scaled, of any members; `sigma` is filled in."""
        grams = self.grams[0][rows], self.grams[1][rows]
        factors = [cholesky(gram) for gram in grams]
        sizes = [gram.diagonal(dim1=1, dim2=2).sum(1) for gram in grams]
        rounding = SQUARED * torch.finfo(torch.float64).eps * sizes[0] * sizes[1]
        flat = factors[0][1] & factors[1][1] & (rounding <= self.tolerance * self.tau[rows].square())
        groups = []
        for places, by_gram in ((flat.nonzero()[:, 0], True), ((~flat).nonzero()[:, 0], False)):
            if len(places):
                members = rows[places]
                lower = factors[0][0][places], factors[1][0][places]
                pair, tau = self.pair.scaled(members), self.tau[members]
                first, second, self.sigma[members] = (
                    core_by_gram(*pair, lower, tau) if by_gram else core_by_svd(*pair, tau)
                )
                groups.append((members, first, second))
        return groups
