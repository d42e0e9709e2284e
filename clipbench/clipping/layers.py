"""Layer-wise clipping: what spectral clippers share. One threshold and one rule per layer, layers grouped by shape."""

from __future__ import annotations

import math
import weakref
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from clipbench.clipping.base import Clipper, ClipStats, NamedParameters, gradients, norms
from clipbench.clipping.rows import Column, NamedRows
from clipbench.clipping.selection import SKIP, check_patterns, matches
from clipbench.clipping.thresholds import Threshold, as_threshold
from clipbench.spectral import SpectralReport, as_matrix, clip_singular_values, matrix_shape


class Group(NamedTuple):
    """Layers that are clipped in one call: their places among the selected layers, also as a tensor."""

    places: list[int]
    rows: Tensor
    vectors: bool  # one side is 1: the norm is the only singular value


class Plan(NamedTuple):
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

    threshold: a float, or a rule that adapts to each layer's past σ_max. skip: name patterns (shell style, against the
    dotted name and its parts) of layers left alone; the default names embeddings, positions and the head; `skip=[]`
    skips none. A layer whose gradient is not finite is left as it is, counted, and not shown to the threshold.
    """

    def __init__(self, threshold: float | Threshold, skip: Sequence[str] = SKIP) -> None:
        self.threshold = as_threshold(threshold)
        self.skip = check_patterns(skip)
        self._untouched: dict[str, tuple[weakref.ref[Tensor], int]] = {}
        self._plans: dict[tuple[Any, ...], Plan] = {}
        self._rows = NamedRows(
            sigma_max=Column(torch.float32, float("nan")),
            threshold=Column(torch.float32, float("nan")),
            count_above=Column(torch.int64, 0),
            calls=Column(torch.int64, 0),
            clipped=Column(torch.int64, 0),
            non_finite=Column(torch.int64, 0),
            fallbacks=Column(torch.int64, 0),
        )

    def clip_matrices(self, names: list[str], matrices: list[Tensor], tau: Tensor, lengths: Tensor) -> SpectralReport:
        """Clip matrices of one shape in place; tau and lengths, their Frobenius norms, are (len(matrices),)."""
        raise TypeError(f"{type(self).__name__} must define clip_matrices")

    def vector_factor(self, norm: Tensor, tau: Tensor) -> Tensor:
        """What a vector of this norm is multiplied with, shape (vectors,); 1 where it is left."""
        return torch.where(torch.isfinite(norm) & (norm > tau), tau / norm, 1.0)

    def __call__(self, named_parameters: NamedParameters) -> ClipStats:
        names, grads = gradients(named_parameters)
        lengths = norms(grads)
        norm = torch.linalg.vector_norm(lengths)
        plan = self._plan(names, grads)
        if not plan.names:
            return ClipStats(norm, torch.zeros_like(norm))
        tau = self.threshold.current(plan.names, norm.device)
        chosen = [grads[place] for place in plan.selected]
        report = self._clip(plan, chosen, lengths.index_select(0, plan.rows), tau)
        self._untouched = {
            name: (weakref.ref(grad), grad._version) for name, grad in zip(plan.names, chosen, strict=True)
        }
        self.threshold.update(plan.names, report.sigma_max)
        self._record(plan.names, tau, report)
        return ClipStats(norm, (report.count_above > 0).float().mean())

    def _plan(self, names: list[str], grads: list[Tensor]) -> Plan:
        key = tuple((name, grad.shape, grad.dtype, grad.device) for name, grad in zip(names, grads, strict=True))
        if key not in self._plans:
            self._plans[key] = self._make_plan(names, grads)
        return self._plans[key]

    def _make_plan(self, names: list[str], grads: list[Tensor]) -> Plan:
        selected = [place for place, name in enumerate(names) if grads[place].numel() and not matches(name, self.skip)]
        members: dict[tuple[Any, ...], list[int]] = {}
        for place, index in enumerate(selected):
            shape = matrix_shape(tuple(grads[index].shape))
            group = ("vectors",) if min(shape) == 1 else (shape, grads[index].dtype)
            members.setdefault(group, []).append(place)
        device = grads[0].device if grads else torch.device("cpu")

        def tensor(places: list[int]) -> Tensor:
            return torch.tensor(places, dtype=torch.int64, device=device)

        groups = [Group(places, tensor(places), group == ("vectors",)) for group, places in members.items()]
        listed = [place for group in groups for place in group.places]
        order = sorted(range(len(listed)), key=listed.__getitem__)
        return Plan(selected, tensor(selected), [names[index] for index in selected], groups, tensor(order))

    def _clip(self, plan: Plan, grads: list[Tensor], lengths: Tensor, tau: Tensor) -> SpectralReport:
        """Clip the selected gradients group by group; the report is in the order of plan.names."""
        reports = []
        for group in plan.groups:
            members = [grads[place] for place in group.places]
            level, length = tau.index_select(0, group.rows), lengths.index_select(0, group.rows)
            if group.vectors:
                reports.append(self._clip_vectors(members, length, level))
                continue
            # reshape copies where the strides allow no view (channels_last convolutions): then write back.
            matrices = [as_matrix(grad) for grad in members]
            names = [plan.names[place] for place in group.places]
            reports.append(self.clip_matrices(names, matrices, level, length))
            for grad, matrix in zip(members, matrices, strict=True):
                if not grad.is_contiguous():
                    grad.copy_(matrix.reshape(grad.shape))
        if len(reports) == 1:
            return reports[0]
        columns = [torch.cat(column).index_select(0, plan.order) for column in zip(*reports, strict=True)]
        return SpectralReport(*columns)

    def _clip_vectors(self, grads: list[Tensor], norm: Tensor, tau: Tensor) -> SpectralReport:
        factor = self.vector_factor(norm, tau)
        torch._foreach_mul_(grads, list(factor.unbind()))
        finite = torch.isfinite(norm)
        sigma = torch.where(finite, norm, float("nan")).float()
        return SpectralReport(sigma, (sigma > tau).to(torch.int64), ~finite, torch.zeros_like(finite))

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

        Where σ_max was not needed (a constant threshold that bounds the norm) it is computed here, from the gradient
        as long as that has not changed; NaN after that.
        """
        stats = {}
        for name, row in self._rows.state_dict().items():
            share = row["clipped"] / row["calls"].clamp_min(1)
            kept = ("sigma_max", "threshold", "count_above", "non_finite", "fallbacks")
            stats[name] = {"clipped_share": share} | {key: row[key] for key in kept}
            grad = self._unchanged(name)
            if grad is not None and bool(torch.isnan(row["sigma_max"])):
                stats[name]["sigma_max"] = clip_singular_values(as_matrix(grad), math.inf)[1]
        return stats

    def _unchanged(self, name: str) -> Tensor | None:
        """The gradient of the last call, if it is there and has not been written to since."""
        reference, version = self._untouched.get(name, (None, 0))
        grad = reference() if reference is not None else None
        return grad if grad is not None and grad._version == version else None

    def state_dict(self) -> dict[str, Any]:
        return {"threshold": self.threshold.state_dict(), "layers": self._rows.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.threshold.load_state_dict(state["threshold"])
        self._rows.load_state_dict(state["layers"])
