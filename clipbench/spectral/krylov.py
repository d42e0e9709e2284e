"""Block Lanczos iteration for the part of a matrix above τ, on G itself; in the terms of `ritz.py`.

A block Krylov space of A = G Gᵀ, with every block kept and made orthogonal to all before it (Golub and Van Loan, Matrix
Computations, section 10.3). For the same passes over G it holds more than the last block of a subspace iteration does:
each Ritz vector has the polynomial that suits it, and what all of them leave of ‖G‖_F² is the certificate.
"""

from __future__ import annotations

import torch
from torch import Tensor

from clipbench.spectral.certificate import nothing_missed_by_trace
from clipbench.spectral.gram import Wide, orthonormal_rows
from clipbench.spectral.ritz import Goal, Leading, by_matrix, rayleigh_ritz
from clipbench.spectral.subspace import converged, nearly, polished

BLOCK = 6  # rows; up to there a pass over G takes no more than twice the time of one row
SMALL = 160  # shorter sides below it, where operations cost more than passes: first A · one block alone is tried
SAMPLE = 16  # columns that tell which rows of G are large: a cache line of each
NEAR = 4.0  # ‖G‖_F/τ up to which few rows mostly hold all but τ² of ‖G‖_F²
HOPELESS = (2.0, 1.5, 1.2, 1.2, 1.2)  # what is left of ‖G‖_F² at each look, over τ², that no more blocks bring to 1
STEEP = 1e-2  # what is left of ‖G‖_F² after the first block, from which few rows hold nearly all; after two, most
REGULAR = 1e-5  # of a trace: far above float32's rounding, far below what matters
ORTHONORMAL = 1e-5  # ‖P Pᵀ − I‖_F of a basis that may vouch for anything


class Krylov:
    """Orthonormal rows P (k, n) for a wide G (n, m), and P A, block by block."""

    def __init__(self, matrix: Tensor) -> None:
        """One block of unit rows, whose products with G are rows of G: the largest, as far as SAMPLE columns tell."""
        rows = torch.linalg.vector_norm(matrix[:, :SAMPLE], dim=1).topk(BLOCK).indices
        self.wide = Wide(matrix, BLOCK)
        self.basis = matrix.new_zeros(BLOCK, len(matrix)).scatter_(1, rows[:, None], 1.0)
        self.rights = [self.wide.split(matrix[rows])]
        self.images = self.wide.left(self.rights[0])
        most = (len(HOPELESS) + 2) * BLOCK
        self.small = torch.empty(most, most, dtype=torch.float64)
        self.small[:BLOCK, :BLOCK] = self.images @ self.basis.mT

    def explained(self) -> float:
        """What the span of P G holds of ‖G‖_F², at least: tr((K + δ I)⁻¹ Z Zᵀ), Z = P A, K = P A Pᵀ; of one block.

        δ is above the rounding in K, which may have fewer than BLOCK values above it.
        """
        core = self.images @ self.basis.mT
        core.diagonal().add_(float(core.diagonal().sum()) * REGULAR)
        factor = torch.linalg.cholesky_ex(core)
        if int(factor.info):
            return 0.0
        return float(torch.linalg.vector_norm(torch.linalg.solve_triangular(factor.L, self.images, upper=False))) ** 2

    def expand(self) -> None:
        """One block more: A times the last one, made orthogonal to all."""
        size, fresh = len(self.basis), self.images[-BLOCK:]
        for _ in range(2):  # what rounding has turned back to the others by e is e² after the second time
            fresh = orthonormal_rows(torch.addmm(fresh, fresh @ self.basis.mT, self.basis, alpha=-1))
        self.rights.append(self.wide.right(fresh))
        image = self.wide.left(self.rights[-1])
        self.basis, self.images = torch.cat([self.basis, fresh]), torch.cat([self.images, image])
        self.small[size : size + BLOCK, : size + BLOCK] = image @ self.basis.mT

    def trace(self) -> float:
        """The sum of the Ritz values."""
        return float(self.small.diagonal()[: len(self.basis)].sum())

    def ritz(self, above: float) -> tuple[Leading, Tensor, Tensor]:
        """The Ritz pairs, A · their vectors, and the rotation (k, k) from the basis to these."""
        size = len(self.basis)
        return rayleigh_ritz(self.small[:size, :size], self.basis, self.images, above)

    def right(self, rotation: Tensor) -> Tensor:
        """rotation · P G, for a few rows of the rotation."""
        return self.wide.whole(self.wide.turned(rotation, torch.cat(self.rights, dim=-2)))

    def orthonormal(self) -> bool:
        """Whether the basis may vouch for anything."""
        product = self.basis @ self.basis.mT
        product.diagonal().sub_(1)
        return float(torch.linalg.vector_norm(product)) <= ORTHONORMAL


def dominant(matrix: Tensor, goal: Goal) -> Leading | None:
    """The pairs above τ without a Gram matrix, certified by the trace; None where that fails."""
    space, norm = Krylov(matrix), goal.norm**2
    if len(matrix) < SMALL:
        found, _ = by_matrix(matrix, orthonormal_rows(space.images), goal.above)
        found = found.with_shares(goal.tau, max(norm - sum(found.values), 0.0))
        if converged(found, goal) and nothing_missed_by_trace(goal.norm, found, goal.above):
            return found
    if goal.norm > NEAR * goal.tau and norm - space.explained() > STEEP * norm:
        return None
    space.expand()
    if norm - space.trace() > STEEP * norm:
        space.expand()
    for look, hopeless in enumerate(HOPELESS):
        if look:
            space.expand()
        found, image, rotation = space.ritz(goal.above)
        rest = norm - sum(found.values)
        if rest > hopeless * goal.above:
            return None
        found = found.with_shares(goal.tau, max(rest, 0.0))
        good = converged(found, goal)
        if good:
            found = found._replace(right=space.right(rotation[: found.above]))
        elif nearly(found, goal):
            found, _, good = polished(matrix, (matrix, matrix.mT), found, image, goal, rest)
        if good and nothing_missed_by_trace(goal.norm, found, goal.above) and space.orthonormal():
            return found
    return None
