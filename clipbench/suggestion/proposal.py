"""From measured norms to thresholds that clip a given share."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from clipbench.suggestion.measured import Norms, SampleLosses, measure

QUANTILES = (0.0, 0.1, 0.5, 0.9, 0.99, 1.0)
TAIL = 0.1  # share of the largest norms that tell the tail's index; our choice
FEWEST = 10  # norms in the tail below which it tells nothing; our choice
LEAST_BETA, MOST_BETA = 1.1, 2.0  # the theory of PS-Clip-SGD wants 1 < β ≤ 2


@dataclass(frozen=True)
class Suggestion:
    """Proposed thresholds, the share that each clips of what was measured, and what was measured; str() is a table.

    alpha, beta: `PowerThreshold(alpha, beta)`; norm: `NormClip(norm)`; spectral: one τ for `SpectralClip(spectral)`.
    sample_share, norm_share, spectral_share: of samples, of batches, and of layers × batches.
    """

    norms: Norms
    alpha: float
    beta: float
    norm: float
    spectral: float
    sample_share: float
    norm_share: float
    spectral_share: float

    def __str__(self) -> str:
        head = "".join(f"{_word(q):>10}" for q in QUANTILES)
        rows = [
            ("sample", self.norms.samples, f"PowerThreshold(alpha={self.alpha:.3g}, beta={self.beta:.3g})",
             self.sample_share),
            ("whole gradient", self.norms.gradients, f"NormClip({self.norm:.3g})", self.norm_share),
            ("layer", _joined(self.norms.layers), "", None),
            ("layer, spectral", _joined(self.norms.spectral), f"SpectralClip({self.spectral:.3g})",
             self.spectral_share),
        ]  # fmt: skip
        lines = [f"{'norm':<16}{head}  proposed"]
        for name, values, proposed, share in rows:
            cells = "".join(f"{_quantile(values, q):>10.3g}" for q in QUANTILES)
            clips = "" if share is None else f" clips {100 * share:.1f} %"
            lines.append(f"{name:<16}{cells}  {proposed}{clips}".rstrip())
        return "\n".join(lines)


def suggest(
    model: nn.Module, loader: Iterable[Any], losses: SampleLosses, batches: int = 10, share: float = 0.1
) -> Suggestion:
    """Thresholds that clip about `share` of samples, gradients and layers, from norms over some batches of `loader`.

    losses: (model, batch) → (n,), one loss per sample. The model stays as it is, `.grad` too; thresholds are for these
    weights, and norms change in training. Raises ValueError for batches < 1, share outside (0, 1), no batch, or a model
    that mixes samples.

        >>> model, loader = torch.nn.Linear(3, 1), [torch.ones(4, 3), torch.ones(4, 3)]
        >>> found = suggest(model, loader, lambda model, x: model(x)[:, 0])  # every sample's gradient is (1, 1, 1, 1)
        >>> round(found.norm, 4), found.beta, found.norms.samples.shape
        (2.0, 2.0, torch.Size([8]))
    """
    _check(share)
    return propose(measure(model, loader, losses, batches), share)


def propose(norms: Norms, share: float = 0.1) -> Suggestion:
    """Thresholds at the (1 − share)-quantiles of the norms; norms that are not finite are left out.

    β: the tail index of the samples' norms (Hill, 1975) between 1.1 and 2, the order of the highest moment that is
    bounded, as arXiv 2605.02701 has it; 2 where too few samples tell. α: so that α k^{1/β} clips `share` of samples.
    """
    _check(share)
    beta = tail_index(norms.samples)
    reduced = norms.samples / norms.positions ** (1 / beta)
    spectral = _joined(norms.spectral)
    alpha, norm, level = (_quantile(values, 1 - share) for values in (reduced, norms.gradients, spectral))
    return Suggestion(
        norms, alpha, beta, norm, level,
        _share(reduced, alpha), _share(norms.gradients, norm), _share(spectral, level),
    )  # fmt: skip


def tail_index(values: Tensor) -> float:
    """Hill's estimate from the largest tenth, k / Σ log(x_i / x_{k+1}), held between 1.1 and 2."""
    finite = values[torch.isfinite(values) & (values > 0)].sort(descending=True).values
    k = int(TAIL * len(finite))
    if k < FEWEST:
        return MOST_BETA
    logs = (finite[:k] / finite[k]).log().sum()
    return min(MOST_BETA, max(LEAST_BETA, float(k / logs))) if logs > 0 else MOST_BETA


def _check(share: float) -> None:
    if not 0 < share < 1:
        raise ValueError(f"share must be between 0 and 1, got {share}")


def _joined(parts: dict[str, Tensor]) -> Tensor:
    return torch.cat(list(parts.values())) if parts else torch.zeros(0, dtype=torch.float64)


def _quantile(values: Tensor, q: float) -> float:
    """The q-quantile of the finite values, one of them (the lower); NaN of none. torch.quantile ends at 16 M values."""
    finite = values[torch.isfinite(values)].sort().values
    return float(finite[int(q * (len(finite) - 1))]) if len(finite) else float("nan")


def _share(values: Tensor, threshold: float) -> float:
    """Share of the finite values above the threshold."""
    finite = values[torch.isfinite(values)]
    return float((finite > threshold).double().mean()) if len(finite) else float("nan")


def _word(q: float) -> str:
    return {0.0: "least", 1.0: "most", 0.5: "median"}.get(q, f"{100 * q:.0f} %")
