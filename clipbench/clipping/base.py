"""What a clipper is: a rule that changes the named gradients in place and says what it did."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol, runtime_checkable

from torch import Tensor

from clipbench.clipping.lengths import clip_factor, norms, scale_, total
from clipbench.clipping.parts import NamedParameters, Parts, is_sharded, pairs, parts

__all__ = [
    "ClipStats",
    "Clipper",
    "NamedParameters",
    "Parts",
    "check_positive",
    "clip_factor",
    "gradients",
    "norms",
    "pairs",
    "parts",
    "scale_",
    "total",
]


class ClipStats(NamedTuple):
    """What one call did; 0-dim tensors on the gradients' device, so that reading them is the caller's choice.

    norm: vector norm of the whole gradient BEFORE clipping, over all parameters together, in float64; None where the
        rule does not need it (a clipper that clips nothing must not cost anything either).
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
    A rule that changes gradients also where it counts nothing as clipped says so by an attribute of its class,
    `acts_below_threshold = True` (so do estimators, weights and updates), and one whose clipped_fraction is of parts of
    a layer, entries or units, by `counts_below_layers = True`: a few of these may carry most of a gradient. Tuning
    takes any other rule whose best trial clips under 1 % for its baseline.
    """

    def __call__(self, named_parameters: NamedParameters) -> ClipStats:
        """Clip in place on `.grad`; parameters without a gradient are passed over.

        Pairs of name and parameter, as model.named_parameters() gives; where names do not matter, parameters alone.
        """
        ...

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain containers, fit for torch.load(weights_only=True); a fresh clipper loads it."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where the clipper that gave `state` stopped."""

    def reseed(self, seed: int) -> None:
        """Start the random draws of a step from `seed`; nothing where the rule draws nothing."""

    def measure_layers(self) -> None:
        """From now on measure at every call whatever `layer_stats` tells, even where clipping does not need it."""

    def layer_stats(self) -> dict[str, dict[str, Tensor]]:
        """Per layer, for logging: sigma_max, threshold, count_above of the last call, clipped_share of all calls."""
        return {}


def gradients(named_parameters: NamedParameters) -> tuple[list[str], list[Tensor]]:
    """Names and gradients of the parameters that have one, for rules that want whole dense real tensors.

    Raises ValueError, with the parameter's name, for a sparse, complex or sharded gradient. `parts` takes them all.
    """
    found = parts(named_parameters, real=True, dense=True)
    for name, grad in zip(found.names, found.whole, strict=True):
        if is_sharded(grad):
            raise ValueError(f"named_parameters must have gradients that are not sharded, got a DTensor for {name}")
    return found.names, found.whole


def check_positive(name: str, value: float) -> float:
    """`value`, or ValueError where it is not > 0 (infinity is allowed: it clips nothing; NaN is not)."""
    if not value > 0:
        raise ValueError(f"{name} must be > 0, got {value}")
    return float(value)
