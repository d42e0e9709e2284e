"""Layer-wise clipping: what spectral clippers share. One threshold and one rule per layer, layers grouped by shape."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn

from clipbench.clipping.base import Clipper, ClipStats, NamedParameters, clip_factor, parts, scale_, total
from clipbench.clipping.parts import gathered, own, put_back
from clipbench.clipping.rows import Column, NamedRows
from clipbench.clipping.selection import SKIP, SKIP_TYPES, check_patterns, matches, skipped, tell
from clipbench.clipping.thresholds import Threshold, as_threshold
from clipbench.spectral import SpectralReport, as_matrix, matrix_shape


class Group(NamedTuple):
    """Layers that are clipped in one call: their places among the selected layers, also as a tensor."""

    places: list[int]
    rows: Tensor
    vectors: bool  # one side is 1: the norm is the only singular value
    flat: bool  # one dimension or none: not a matrix at all


class Grouping(NamedTuple):
    """What does not change from step to step as long as the same parameters have gradients of the same kind.

    selected: the layers' places among all gradients, rows the same as a tensor. order: the permutation that brings
    the groups' layers, one group after the other, back into the order of names.
    """

    selected: list[int]
    rows: Tensor
    names: list[str]
    groups: list[Group]
    order: Tensor


class LayerClip(Clipper):
    """Every layer's gradient on its own, as a matrix (shape[0], −1), against its own threshold.

    threshold: a float, or a rule that adapts to each layer's past σ_max (or includes the current one: then every layer
    is measured before it is clipped, at twice the cost). skip: name patterns (shell style, against the dotted name and
    its parts) of layers left alone; the default is the paper's list of embeddings and language-model heads, `skip=[]`
    skips none; the first call logs which parameters it leaves alone. A layer whose gradient is not finite is left as it
    is, counted, and not shown to the threshold. A sharded gradient (DTensor, FSDP2) is gathered, clipped as a whole on
    every process, and each keeps its share. Raises ValueError for parameters without names, and for sparse and complex
    gradients.
    """

    backends: tuple[str, ...] = ("auto",)

    def __init__(self, threshold: float | Threshold, backend: str = "auto", skip: Sequence[str] = SKIP) -> None:
        self.threshold = as_threshold(threshold)
        if backend not in self.backends:
            raise ValueError(f"backend must be one of {', '.join(self.backends)}, got {backend}")
        self.backend: Any = backend
        self.skip = check_patterns(skip)
        self.measure = self.threshold.adaptive
        self._told = False
        self._groupings: dict[tuple[Any, ...], Grouping] = {}
        self._rows = NamedRows(
            sigma_max=Column(torch.float64, float("nan")),
            threshold=Column(torch.float64, float("nan")),
            count_above=Column(torch.int64, 0),
            calls=Column(torch.int64, 0),
            clipped=Column(torch.int64, 0),
            non_finite=Column(torch.int64, 0),
            fallbacks=Column(torch.int64, 0),
        )

    @classmethod
    def for_model(
        cls,
        model: nn.Module,
        threshold: float | Threshold,
        backend: str = "auto",
        skip: Sequence[str] = SKIP,
        skip_types: Sequence[str] = SKIP_TYPES,
    ) -> Self:
        """The same clipper for `model`; also skips the parameters of modules of these classes, by name."""
        return cls(threshold, backend, skipped(model, skip, skip_types))

    def measure_layers(self) -> None:
        self.measure = True

    def clip_matrices(self, names: list[str], matrices: list[Tensor], tau: Tensor, lengths: Tensor) -> SpectralReport:
        """Clip matrices of one shape in place; tau and lengths, their Frobenius norms, are (len(matrices),)."""
        raise TypeError(f"{type(self).__name__} must define clip_matrices")

    def vector_factor(self, norm: Tensor, tau: Tensor, flat: bool) -> Tensor:
        """What a vector of this norm is multiplied with, float64 (vectors,); 1 where it is left. flat: no matrix."""
        return clip_factor(norm, tau)

    def __call__(self, named_parameters: NamedParameters) -> ClipStats:
        found = parts(named_parameters, named=True, real=True, dense=True)
        lengths = found.norms()
        norm = total(lengths)
        grouping = self._grouping(found.names, found.whole)
        if not grouping.names:
            return ClipStats(norm, torch.zeros_like(norm))
        chosen = [found.whole[place] for place in grouping.selected]
        length = lengths.index_select(0, grouping.rows)
        if self.threshold.include_current:
            unclipped = self._clip(grouping, chosen, length, torch.full_like(length, math.inf))
            tau = self.threshold.at(grouping.names, unclipped.sigma_max)
        else:
            tau = self.threshold.current(grouping.names, norm.device).double()
        report = self._clip(grouping, chosen, length, tau)
        self.threshold.record(grouping.names, report.sigma_max, tau)
        self._record(grouping.names, tau, report)
        return ClipStats(norm, (report.count_above > 0).double().mean())

    def _grouping(self, names: list[str], grads: list[Tensor]) -> Grouping:
        key = tuple((name, grad.shape, grad.dtype, grad.device) for name, grad in zip(names, grads, strict=True))
        if key not in self._groupings:
            self._groupings[key] = self._make_grouping(names, grads)
        return self._groupings[key]

    def _make_grouping(self, names: list[str], grads: list[Tensor]) -> Grouping:
        left = [name for name in names if matches(name, self.skip)]
        if left and not self._told:
            tell(type(self).__name__, left)
        self._told = True
        selected = [place for place, name in enumerate(names) if grads[place].numel() and name not in left]
        members: dict[tuple[Any, ...], list[int]] = {}
        for place, index in enumerate(selected):
            shape = matrix_shape(tuple(grads[index].shape))
            vectors = min(shape) == 1
            group = (vectors, vectors and grads[index].ndim < 2, *(() if vectors else (shape, grads[index].dtype)))
            members.setdefault(group, []).append(place)
        device = grads[0].device if grads else torch.device("cpu")

        def tensor(places: list[int]) -> Tensor:
            return torch.tensor(places, dtype=torch.int64, device=device)

        groups = [Group(places, tensor(places), *group[:2]) for group, places in members.items()]
        listed = [place for group in groups for place in group.places]
        order = sorted(range(len(listed)), key=listed.__getitem__)
        return Grouping(selected, tensor(selected), [names[index] for index in selected], groups, tensor(order))

    def _clip(self, grouping: Grouping, grads: list[Tensor], lengths: Tensor, tau: Tensor) -> SpectralReport:
        """Clip the selected gradients group by group; the report is in the order of grouping.names."""
        reports = []
        for group in grouping.groups:
            members = [grads[place] for place in group.places]
            level, length = tau.index_select(0, group.rows), lengths.index_select(0, group.rows)
            if group.vectors:
                reports.append(self._clip_vectors(members, length, level, group.flat))
                continue
            # reshape copies where the strides allow no view (channels_last convolutions): then write back.
            whole = [gathered(grad) for grad in members]
            matrices = [as_matrix(grad) for grad in whole]
            names = [grouping.names[place] for place in group.places]
            reports.append(self.clip_matrices(names, matrices, level, length))
            for grad, full, matrix in zip(members, whole, matrices, strict=True):
                if full is not grad:
                    put_back(grad, matrix.reshape(grad.shape))
                elif not grad.is_contiguous():
                    grad.copy_(matrix.reshape(grad.shape))
        if len(reports) == 1:
            return reports[0]
        columns = [torch.cat(column).index_select(0, grouping.order) for column in zip(*reports, strict=True)]
        return SpectralReport(*columns)

    def _clip_vectors(self, grads: list[Tensor], norm: Tensor, tau: Tensor, flat: bool) -> SpectralReport:
        scale_([own(grad) for grad in grads], self.vector_factor(norm, tau, flat))
        finite = torch.isfinite(norm)
        sigma = torch.where(finite, norm, float("nan"))
        return SpectralReport(sigma, (finite & ~(norm <= tau)).to(torch.int64), ~finite, torch.zeros_like(finite))

    def _record(self, names: list[str], tau: Tensor, report: SpectralReport) -> None:
        rows = self._rows.select(names, tau.device)
        rows["sigma_max"], rows["threshold"], rows["count_above"] = report.sigma_max, tau, report.count_above
        rows["calls"] = rows["calls"] + 1
        rows["clipped"] = rows["clipped"] + (report.count_above > 0)
        rows["non_finite"] = rows["non_finite"] + report.left
        rows["fallbacks"] = rows["fallbacks"] + report.fell_back

    def layer_stats(self) -> dict[str, dict[str, Tensor]]:
        """Per layer: of the last call sigma_max, threshold and count_above; over all calls clipped_share (a share),
        and non_finite and fallbacks (counts).

        σ_max is NaN where a constant threshold bounds the norm, so that nothing was measured; `measure_layers` has it
        measured from the next call on.
        """
        kept = ("sigma_max", "threshold", "count_above", "non_finite", "fallbacks")
        stats = {}
        for name, row in self._rows.state_dict().items():
            share = row["clipped"] / row["calls"].clamp_min(1)
            stats[name] = {"clipped_share": share} | {key: row[key] for key in kept}
        return stats

    def state_dict(self) -> dict[str, Any]:
        return {"threshold": self.threshold.state_dict(), "layers": self._rows.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.threshold.load_state_dict(state["threshold"])
        self._rows.load_state_dict(state["layers"])
