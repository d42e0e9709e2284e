"""The slow path, for parameters that no rule covers: one backward pass for every sample, to those parameters only.

All samples share one graph there, through which a non-finite sample reaches the others (0 · inf = NaN): where one is
lost, the batch is.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx

from clipbench.per_sample.care import Care, taking
from clipbench.per_sample.cost import SUBGRAPH_BYTES
from clipbench.per_sample.factors import across, row_norms
from clipbench.per_sample.pullback import apart, nodes_below


def warn_slow(reasons: Mapping[int, str], model: nn.Module, n: int) -> None:
    """Name the parameters that take the slow path, why (by their ids), and what it costs."""
    listed = ", ".join(
        f"{name} ({reasons[id(param)]})" for name, param in model.named_parameters() if id(param) in reasons
    )
    warnings.warn(
        f"no per-sample rule covers how these parameters are used: {listed}; "
        f"their gradients take {n} backward passes a step, one for "
        "each sample, and all others still one in total. Freeze them, or use a layer that has a rule, to avoid this.",
        stacklevel=4,
    )


def sample_gradients(loss: Tensor, params: Sequence[Tensor]) -> list[Tensor]:
    """The gradients of one loss, zeros where it does not depend on a parameter; keeps the graph."""
    grads = torch.autograd.grad(loss, params, retain_graph=True, allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(params, grads, strict=True)]


class SlowGradients:
    """Per-sample gradients of `params`; kept where they are few, so that the weighted sum takes no further pass.

    A user's own code may be no linear function of its gradient (one that limits it): then the gradient of the weighted
    losses is another than the weighted sum, which is what is promised. Where such code is in the graph, or known to be
    in a hook (`nonlinear`), the sum is taken over single passes, too.
    """

    def __init__(self, losses: Tensor, params: Sequence[Tensor], nonlinear: bool = False) -> None:
        self.losses, self.params, self.nonlinear = losses, params, nonlinear
        size = sum(param.numel() * param.element_size() for param in params)
        self._kept: list[list[Tensor]] | None = [] if size * len(losses) <= SUBGRAPH_BYTES else None

    def norms(self) -> Tensor:
        """Norms (n,) of the gradients, taken together."""
        norms = []
        if self._kept is not None:
            self._kept.clear()
        with taking(Care.SURE):  # beside n backward passes that costs nothing
            for gradients in self._one_by_one():
                norms.append(across([row_norms(g.reshape(1, -1)) for g in gradients]))
                if self._kept is not None:
                    self._kept.append(gradients)
        dtypes = {torch.zeros((), dtype=param.dtype, device="cpu").abs().dtype for param in self.params}
        return torch.cat(norms).to(torch.float64 if torch.float64 in dtypes else torch.float32)

    def weighted(self, gamma: Tensor, keep: Tensor | None) -> list[Tensor]:
        """Σ_k γ_k g_k for each parameter, over the samples that are kept (None: all)."""
        rows: Iterable[list[Tensor]]
        if self._kept:
            rows = self._kept
        elif keep is None and not self.nonlinear and not has_own_code(self.losses):
            grads = apart(torch.autograd.grad(self.losses, self.params, gamma.to(self.losses.dtype), allow_unused=True))
            return [torch.zeros_like(p) if g is None else g for p, g in zip(self.params, grads, strict=True)]
        else:
            rows = self._one_by_one()
        sums = [torch.zeros_like(p) for p in self.params]
        kept = torch.ones_like(gamma, dtype=torch.bool) if keep is None else keep
        for use, weight, gradients in zip(kept.unbind(), gamma.unbind(), rows, strict=True):
            for total, g in zip(sums, gradients, strict=True):
                total += torch.where(use, g, 0.0) * weight.to(g.dtype)
        return sums

    def _one_by_one(self) -> Iterator[list[Tensor]]:
        with torch.enable_grad():
            parts = self.losses.unbind()
        return (sample_gradients(loss, self.params) for loss in parts)


def has_own_code(losses: Tensor) -> bool:
    """Whether the graph holds a function of the user's own."""
    return any(isinstance(node, FunctionCtx) for node in nodes_below([losses.grad_fn]))
