"""Layer-wise clipping: what spectral clippers share. One threshold and one rule per layer, layers grouped by shape."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from clipbench.clipping.base import Clipper, ClipStats, NamedParameters, gradients, norms
from clipbench.clipping.rows import Column, NamedRows
from clipbench.clipping.selection import SKIP, check_patterns, matches
from clipbench.clipping.thresholds import Threshold, as_threshold
from clipbench.spectral import SpectralReport, as_matrix, matrix_shape


class Group(NamedTuple):
    """Layers that are clipped in one call: their places among the selected layers."""

    places: list[int]
    vectors: bool  # one side is 1: the norm is the only singular value


class Plan(NamedTuple):
    """What does not change from step to step as long as the same parameters have gradients of the same kind.

    order: places of the groups' layers, one group after the other, as a permutation that sorts them back.
    """

    selected: list[int]
    names: list[str]
    groups: list[Group]
    indices: list[Tensor]
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

    def clip_matrices(self, names: list[str], matrices: list[Tensor], tau: Tensor) -> SpectralReport:
        """Clip matrices of one shape in place; tau (len(matrices),)."""
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
        lengths = lengths[plan.selected] if len(plan.selected) < len(grads) else lengths
        report = self._clip(plan, [grads[place] for place in plan.selected], lengths.float(), tau)
        self.threshold.update(plan.names, report.sigma_max)
        self._record(plan.names, tau, report)
        return ClipStats(norm, (report.count_above > 0).float().mean())

    def _plan(self, names: list[str], grads: list[Tensor]) -> Plan:
        key = tuple((name, grad.shape, grad.dtype) for name, grad in zip(names, grads, strict=True))
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
        groups = [Group(places, group == ("vectors",)) for group, places in members.items()]
        device = grads[0].device if grads else torch.device("cpu")
        order = torch.tensor([place for group in groups for place in group.places], dtype=torch.int64)
        indices = [torch.tensor(group.places, device=device) for group in groups]
        return Plan(selected, [names[index] for index in selected], groups, indices, order.argsort().to(device))

    def _clip(self, plan: Plan, grads: list[Tensor], lengths: Tensor, tau: Tensor) -> SpectralReport:
        """Clip the selected gradients group by group; the report is in the order of plan.names."""
        reports = []
        for group, index in zip(plan.groups, plan.indices, strict=True):
            members, level = [grads[place] for place in group.places], tau[index]
            if group.vectors:
                reports.append(self._clip_vectors(members, lengths[index], level))
                continue
            # reshape copies where the strides allow no view (channels_last convolutions): then write back.
            matrices = [as_matrix(grad) for grad in members]
            reports.append(self.clip_matrices([plan.names[place] for place in group.places], matrices, level))
            for grad, matrix in zip(members, matrices, strict=True):
                if not grad.is_contiguous():
                    grad.copy_(matrix.reshape(grad.shape))
        if len(reports) == 1:
            return reports[0]
        return SpectralReport(*(torch.cat(column)[plan.order] for column in zip(*reports, strict=True)))

    def _clip_vectors(self, grads: list[Tensor], norm: Tensor, tau: Tensor) -> SpectralReport:
        factor = self.vector_factor(norm, tau)
        torch._foreach_mul_(grads, list(factor.unbind()))
        finite = torch.isfinite(norm)
        sigma = torch.where(finite, norm, float("nan"))
        return SpectralReport(sigma, (sigma > tau).to(torch.int64), ~finite, torch.zeros_like(finite))

    def _record(self, names: list[str], tau: Tensor, report: SpectralReport) -> None:
        rows = self._rows.select(names, tau.device)
        rows["sigma_max"], rows["threshold"], rows["count_above"] = report.sigma_max, tau, report.count_above
        rows["calls"] = rows["calls"] + 1
        rows["clipped"] = rows["clipped"] + (report.count_above > 0)
        rows["non_finite"] = rows["non_finite"] + report.left
        rows["fallbacks"] = rows["fallbacks"] + report.fell_back

    def layer_stats(self) -> dict[str, dict[str, Tensor]]:
        """sigma_max, threshold and count_above of the last call; clipped_share of all; calls non_finite, fallbacks."""
        stats = {}
        for name, row in self._rows.state_dict().items():
            share = row["clipped"] / row["calls"].clamp_min(1)
            kept = ("sigma_max", "threshold", "count_above", "non_finite", "fallbacks")
            stats[name] = {"clipped_share": share} | {key: row[key] for key in kept}
        return stats

    def state_dict(self) -> dict[str, Any]:
        return {"threshold": self.threshold.state_dict(), "layers": self._rows.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.threshold.load_state_dict(state["threshold"])
        self._rows.load_state_dict(state["layers"])
