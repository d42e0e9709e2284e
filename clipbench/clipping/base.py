"""What a clipper is: a rule that changes the named gradients in place and says what it did."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

NamedParameters = Iterable[tuple[str, nn.Parameter]]


class ClipStats(NamedTuple):
    """What one call did; 0-dim tensors on the gradients' device, so that reading them is the caller's choice.

    norm: vector norm of the whole gradient BEFORE clipping, over all parameters together; None where the rule does
        not need it (a clipper that clips nothing must not cost anything either).
    clipped_fraction: share of the clipper's groups that were clipped, in [0, 1]; a group is the whole gradient
        (NormClip), a layer (SpectralClip) or an entry (ValueClip).
    """

    norm: Tensor | None
    clipped_fraction: Tensor


@runtime_checkable
class Clipper(Protocol):
    """The contract of every clipper. Subclass it: all but `__call__` have a default that does nothing.

    A clipper may be called several times a step (on each micro-batch's gradient); a stateful threshold sees each call.
    Non-finite gradients: what a clipper cannot measure it leaves as it is, so that divergence shows, and counts.
    """

    def __call__(self, named_parameters: NamedParameters) -> ClipStats:
        """Clip in place on `.grad`; parameters without a gradient are passed over."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain containers, fit for torch.load(weights_only=True); a fresh clipper loads it."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where the clipper that gave `state` stopped."""

    def reseed(self, seed: int) -> None:
        """Start the random draws of a step from `seed`; nothing where the rule draws nothing."""

    def layer_stats(self) -> dict[str, dict[str, Tensor]]:
        """Per layer, for logging: sigma_max, threshold, count_above of the last call, clipped_share of all calls."""
        return {}


def gradients(named_parameters: NamedParameters) -> tuple[list[str], list[Tensor]]:
    """Names and gradients of the parameters that have one. Raises ValueError for a sparse gradient."""
    names, grads = [], []
    for name, parameter in named_parameters:
        if parameter.grad is None:
            continue
        if parameter.grad.layout != torch.strided:
            raise ValueError(f"named_parameters must have dense gradients, got {parameter.grad.layout} for {name}")
        names.append(name)
        grads.append(parameter.grad)
    return names, grads


ROW = 1024  # entries that are summed before the rows' norms are


def norms(grads: list[Tensor]) -> Tensor:
    """Vector norm of each gradient, shape (len(grads),), in float32 at least; an empty list gives shape (0,).

    A long gradient is summed in rows first: on a CPU torch's own float32 norm of 38 million entries (a fully
    connected layer of AlexNet) is wrong by 3e-3, in rows by 3e-7, and rows are twice as fast.
    """
    if not grads:
        return torch.zeros(0)
    dtype = torch.float64 if any(grad.dtype == torch.float64 for grad in grads) else torch.float32
    return torch.stack(torch._foreach_norm([_shorten(grad) for grad in grads], 2, dtype=dtype))


def _shorten(grad: Tensor) -> Tensor:
    """A vector with the gradient's norm: the gradient itself where it is short, the norms of its rows where not."""
    if grad.numel() < 64 * ROW:
        return grad
    flat = grad.reshape(-1)
    even = grad.numel() - grad.numel() % ROW
    wide = grad.dtype if grad.dtype == torch.float64 else torch.float32
    rows = torch.linalg.vector_norm(flat[:even].view(-1, ROW), dim=1, dtype=wide)
    return torch.cat([rows, flat[even:].to(wide)])


def check_positive(name: str, value: float) -> float:
    """`value`, or ValueError where it is not > 0 (infinity is allowed: it clips nothing; NaN is not)."""
    if not value > 0:
        raise ValueError(f"{name} must be > 0, got {value}")
    return float(value)
