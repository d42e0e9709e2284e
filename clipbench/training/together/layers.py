"""Layer-wise clipping of all members at once: one threshold a member and layer, layers of one shape in one call.

A layer whose gradient is a product of few rows is clipped through its factors (clipbench.spectral.clip_factored), any
other matrix by the same kernels as in a lone run.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from clipbench.clipping import SoftSpectralClip, SpectralClip
from clipbench.clipping.selection import matches
from clipbench.spectral import (
    SpectralReport,
    clip_factored,
    clip_matrices_,
    hard_factored,
    matrix_shape,
    soft_factored,
    soft_matrices_,
)
from clipbench.training.together.gradients import Clipped, Gradients, LayerGradient, lengths, norm
from clipbench.training.together.members import Members
from clipbench.training.together.thresholds import stacked_thresholds

FAR = 3.0  # ‖G‖_F/τ beyond which several singular values are likely above τ
FARTHEST = {torch.float32: 1e4, torch.float64: 1e2}  # up to which `hard_factored` keeps the digits of these


class Sizes(NamedTuple):
    """Of a batch of products: thresholds, Frobenius norms, and whether σ_max is wanted of all."""

    tau: Tensor
    length: Tensor
    measure: bool


class Layers:
    """What SpectralClip and SoftSpectralClip share; names that match `skip` are left alone."""

    def __init__(self, clippers: Sequence[SpectralClip] | Sequence[SoftSpectralClip], members: Members) -> None:
        first = clippers[0]
        self.thresholds = stacked_thresholds([clipper.threshold for clipper in clippers])
        self.backend, self._own = first.backend, first
        chosen = [name for name in members.names if members.weights[name][0].numel() and not matches(name, first.skip)]
        self._names = chosen
        shapes = {name: matrix_shape(tuple(members.weights[name].shape[1:])) for name in chosen}
        self._vectors = [name for name in chosen if min(shapes[name]) == 1]
        self._groups: dict[tuple[int, int], list[str]] = {}
        for name in chosen:
            if name not in self._vectors:
                self._groups.setdefault(shapes[name], []).append(name)

    def __call__(self, gradients: Gradients) -> Clipped:
        every = lengths(gradients)
        whole = norm(every)
        names = [name for name in self._names if name in gradients]
        if not names:
            return Clipped(whole, torch.zeros_like(whole))
        places = {name: place for place, name in enumerate(gradients)}
        length = every[:, [places[name] for name in names]]
        if self.thresholds.include_current:
            infinite = torch.full_like(length, math.inf)
            tau = self.thresholds.at(names, self._clip(gradients, names, length, infinite, measure=True))
        else:
            tau = self.thresholds.current(names, whole.device)
        sigma = self._clip(gradients, names, length, tau, self.thresholds.adaptive)
        self.thresholds.record(names, sigma, tau)
        return Clipped(whole, (torch.isfinite(sigma) & ~(sigma <= tau)).double().mean(1))

    def _clip(self, gradients: Gradients, names: Sequence[str], length: Tensor, tau: Tensor, measure: bool) -> Tensor:
        """Clip the layers `names`; σ_max (R, layers), NaN where it is not finite or, without `measure`, not needed."""
        sigma = torch.full_like(length, math.nan)
        column = {name: place for place, name in enumerate(names)}
        for name in self._vectors:
            if name in column:
                self._clip_vector(gradients[name], length, tau, sigma, column[name])
        for shape, members in self._groups.items():
            present = [name for name in members if name in column]
            if present:
                rows = [column[name] for name in present]
                layers = [gradients[name] for name in present]
                sigma[:, rows] = self._clip_group(shape, layers, length[:, rows], tau[:, rows], measure).to(sigma.dtype)
        return sigma

    def _clip_vector(self, layer: LayerGradient, length: Tensor, tau: Tensor, sigma: Tensor, place: int) -> None:
        norms, level = length[:, place], tau[:, place]
        layer.multiply(self.vector_factor(norms, level, layer.formed.dim() < 3))
        sigma[:, place] = torch.where(torch.isfinite(norms), norms, math.nan)

    def _clip_group(
        self, shape: tuple[int, int], layers: Sequence[LayerGradient], length: Tensor, tau: Tensor, measure: bool
    ) -> Tensor:
        """Clip layers of one shape; σ_max (R, layers), NaN where it is not finite or not needed."""
        rows = [layer.rows for layer in layers if layer.rows is not None]
        few = len(rows) == len(layers) and rows[0][0].shape[1] < min(shape)
        if few and self.by_factors():
            return self._clip_factors(layers, length, tau, measure)
        return self._clip_formed(layers, length, tau, measure)

    def _clip_factors(self, layers: Sequence[LayerGradient], length: Tensor, tau: Tensor, measure: bool) -> Tensor:
        """Through the rows, those members and layers only that can have anything above τ (all, if σ_max is wanted)."""
        sigma = torch.full(length.shape, math.nan, dtype=length.dtype)
        wanted = torch.isfinite(length) if measure else self.needs(length, tau)
        where = [own.nonzero()[:, 0] for own in wanted.unbind(1)]
        if not sum(map(len, where)):
            return sigma
        pairs = [layer.rows for layer in layers if layer.rows is not None]
        inputs = torch.cat([pair[0][own] for pair, own in zip(pairs, where, strict=True)])
        delta = torch.cat([pair[1][own] for pair, own in zip(pairs, where, strict=True)])
        level = torch.cat([tau[own, place] for place, own in enumerate(where)])
        sizes = torch.cat([length[own, place] for place, own in enumerate(where)])
        inputs, delta, found = self.factored(inputs, delta, Sizes(level, sizes, measure))
        start = 0
        for place, (layer, own) in enumerate(zip(layers, where, strict=True)):
            part = slice(start, start + len(own))
            start += len(own)
            sigma[own, place] = found[part].to(sigma.dtype)
            changed = self.changes(found[part], level[part])
            if bool(changed.any()):
                layer.put(own[changed], inputs[part][changed], delta[part][changed])
        return sigma

    def _clip_formed(self, layers: Sequence[LayerGradient], length: Tensor, tau: Tensor, measure: bool) -> Tensor:
        """The products, matrix by matrix or by batched products, as the backend has it."""
        formed = [layer.formed.clone() for layer in layers]
        matrices = [member.reshape(member.shape[0], -1) for stacked in formed for member in stacked.unbind()]
        report = self.kernel(matrices, tau.mT.reshape(-1), length.mT.reshape(-1), measure)
        members = len(tau)
        for layer, stacked, own in zip(layers, formed, _chunks(matrices, members), strict=True):
            layer.replace(torch.stack(own).view(stacked.shape))
        return report.sigma_max.view(len(layers), members).mT

    def vector_factor(self, norm: Tensor, tau: Tensor, flat: bool) -> Tensor:
        """What a vector of this norm is multiplied with; the members' own rule. flat: no matrix."""
        return self._own.vector_factor(norm, tau, flat)

    def by_factors(self) -> bool:
        """Whether the backend may be replaced by the factored form, which is exact."""
        return self.backend in ("auto", "exact")

    def factored(self, inputs: Tensor, delta: Tensor, sizes: Sizes) -> tuple[Tensor, Tensor, Tensor]:
        """Both factors after clipping, and σ_max, of a batch of products."""
        raise TypeError(f"{type(self).__name__} must define factored")

    def needs(self, length: Tensor, tau: Tensor) -> Tensor:
        """Where the rule may change something, judged by the norms."""
        return torch.isfinite(length) & ~(length <= tau)

    def changes(self, sigma: Tensor, tau: Tensor) -> Tensor:
        """Which products of σ_max and τ the rule changes."""
        return sigma > tau

    def kernel(self, matrices: list[Tensor], tau: Tensor, length: Tensor, measure: bool) -> SpectralReport:
        """Clips formed matrices of one shape in place."""
        raise TypeError(f"{type(self).__name__} must define kernel")

    def reseed(self, seeds: Sequence[int]) -> None:
        """Nothing is drawn."""

    def state_dict(self) -> dict[str, Any]:
        return self.thresholds.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.thresholds.load_state_dict(state)


class Spectral(Layers):
    """SpectralClip."""

    @staticmethod
    def refuses(clipper: SpectralClip) -> str:
        """Why the batched form cannot take this one; empty where it can."""
        return "backend randomized draws for itself" if clipper.backend == "randomized" else ""

    def factored(self, inputs: Tensor, delta: Tensor, sizes: Sizes) -> tuple[Tensor, Tensor, Tensor]:
        ratio = sizes.length / sizes.tau
        if not sizes.measure and bool(((ratio > FAR).double().mean() > 0.5) & (ratio.amax() < FARTHEST[inputs.dtype])):
            return inputs, *hard_factored(inputs, delta, sizes.tau)
        return clip_factored(inputs, delta, sizes.tau, measure=sizes.measure)

    def kernel(self, matrices: list[Tensor], tau: Tensor, length: Tensor, measure: bool) -> SpectralReport:
        return clip_matrices_(matrices, tau, self.backend, measure, length)


class SoftSpectral(Layers):
    """SoftSpectralClip."""

    def factored(self, inputs: Tensor, delta: Tensor, sizes: Sizes) -> tuple[Tensor, Tensor, Tensor]:
        return inputs, *soft_factored(inputs, delta, sizes.tau)

    def needs(self, length: Tensor, tau: Tensor) -> Tensor:
        return torch.isfinite(length) & torch.isfinite(tau)

    def changes(self, sigma: Tensor, tau: Tensor) -> Tensor:
        return torch.isfinite(tau)

    def kernel(self, matrices: list[Tensor], tau: Tensor, length: Tensor, measure: bool) -> SpectralReport:
        return soft_matrices_(matrices, tau, self.backend, measure)


def _chunks(matrices: list[Tensor], size: int) -> list[list[Tensor]]:
    return [matrices[start : start + size] for start in range(0, len(matrices), size)]
