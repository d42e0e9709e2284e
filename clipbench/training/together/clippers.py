"""Clippers of all members at once.

A clipper's type has a batched form in `FORMS` (exact types: a subclass may have another rule); any other clipper is
called on its own member's gradients, one member after the other (`Each`), which is slower and always right.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch

from clipbench.clipping import Clipper, NoClip, NormClip, SoftSpectralClip, SpectralClip, ValueClip
from clipbench.clipping.lengths import clip_factor
from clipbench.clipping.norm import KEY
from clipbench.clipping.selection import matches
from clipbench.training.together.gradients import Clipped, Gradients, lengths, norm
from clipbench.training.together.layers import SoftSpectral, Spectral
from clipbench.training.together.members import Members
from clipbench.training.together.numbers import over
from clipbench.training.together.thresholds import stacked_thresholds


class Clippers(Protocol):
    """The members' clippers as one; changes the gradients it is given."""

    def __call__(self, gradients: Gradients) -> Clipped: ...

    def reseed(self, seeds: Sequence[int]) -> None: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class _Stateless:
    def reseed(self, seeds: Sequence[int]) -> None:
        """Nothing is drawn."""

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """There is no state."""


class None_(_Stateless):
    """NoClip."""

    def __init__(self, clippers: Sequence[NoClip], members: Members) -> None:
        self._nothing = torch.zeros(len(members), device=members.device)

    def __call__(self, gradients: Gradients) -> Clipped:
        return Clipped(None, self._nothing)


class Norm(_Stateless):
    """NormClip: g ← g · min(1, τ/‖g‖), the norm over a member's parameters that do not match `skip`."""

    def __init__(self, clippers: Sequence[NormClip], members: Members) -> None:
        self.thresholds = stacked_thresholds([clipper.threshold for clipper in clippers])
        self._skipped = {name for name in members.names if matches(name, clippers[0].skip)}
        self._nothing = torch.zeros(len(members), dtype=torch.float64, device=members.device)

    def __call__(self, gradients: Gradients) -> Clipped:
        taken = {name: layer for name, layer in gradients.items() if name not in self._skipped}
        if not taken:
            return Clipped(self._nothing, self._nothing)
        whole = norm(lengths(taken))
        tau = self.thresholds.at([KEY], whole[:, None])
        factor = clip_factor(whole, tau[:, 0])
        for layer in taken.values():
            layer.multiply(factor)
        self.thresholds.record([KEY], whole[:, None], tau)
        return Clipped(whole, (torch.isfinite(whole) & ~(whole <= tau[:, 0])).to(whole.dtype))

    def state_dict(self) -> dict[str, Any]:
        return self.thresholds.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.thresholds.load_state_dict(state)


class Value(_Stateless):
    """ValueClip: every entry to [−τ, τ], what is not finite left."""

    def __init__(self, clippers: Sequence[ValueClip], members: Members) -> None:
        values = [clipper.threshold for clipper in clippers]
        self._tau = torch.tensor(values, dtype=members.dtype, device=members.device)

    def __call__(self, gradients: Gradients) -> Clipped:
        whole = norm(lengths(gradients))
        beyond = torch.zeros_like(whole)
        entries, finite = 0, bool(torch.isfinite(whole).all())
        for layer in gradients.values():
            formed = layer.formed
            tau = over(self._tau, formed)
            clamped = formed.clamp(-tau, tau)
            entries += formed[0].numel()
            changed = torch.ne(clamped, formed, out=torch.empty_like(formed))  # as numbers, which add up faster
            if not finite:  # an entry that is not finite is left as it is, and not counted
                keep = torch.isfinite(formed)
                clamped, changed = torch.where(keep, clamped, formed), changed * keep
            beyond += changed.flatten(1).sum(1)
            layer.replace(clamped)
        return Clipped(whole, beyond / max(entries, 1))


class Each:
    """Each member's own clipper, called on the member's own gradients."""

    def __init__(self, clippers: Sequence[Clipper], members: Members) -> None:
        self.clippers, self.members = list(clippers), members

    def __call__(self, gradients: Gradients) -> Clipped:
        formed = {name: layer.formed for name, layer in gradients.items()}
        self.members.lend(formed)
        stats = [
            clipper(list(parameters.items()))
            for clipper, parameters in zip(self.clippers, self.members.parameters, strict=True)
        ]
        self.members.take_back()
        for name, layer in gradients.items():
            layer.replace(formed[name])  # the members' own parts of it were changed in place
        norms = [each.norm for each in stats if each.norm is not None]
        whole = torch.stack(norms) if len(norms) == len(stats) else None
        return Clipped(whole, torch.stack([each.clipped_fraction for each in stats]))

    def reseed(self, seeds: Sequence[int]) -> None:
        for clipper, seed in zip(self.clippers, seeds, strict=True):
            clipper.reseed(seed)

    def state_dict(self) -> dict[str, Any]:
        return {"members": [clipper.state_dict() for clipper in self.clippers]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for clipper, own in zip(self.clippers, state["members"], strict=True):
            clipper.load_state_dict(own)


Form = Callable[[Sequence[Any], Members], Clippers]
FORMS: dict[type, Form] = {
    NoClip: None_,
    NormClip: Norm,
    ValueClip: Value,
    SpectralClip: Spectral,
    SoftSpectralClip: SoftSpectral,
}


def stacked_clippers(clippers: Sequence[Clipper], members: Members, say: Callable[[str], None]) -> Clippers:
    """The members' clippers as one; says where they are called one after the other."""
    kind = type(clippers[0])
    form = FORMS.get(kind)
    unbatched = getattr(form, "refuses", lambda _: None)(clippers[0])
    if form is None or members.first.options.log_layers or unbatched:
        why = unbatched or ("log_layers" if form is not None else "it has no batched form")
        say(f"together: {kind.__name__} goes member by member ({why})")
        if members.first.options.log_layers:
            for clipper in clippers:
                clipper.measure_layers()
        return Each(clippers, members)
    return form(clippers, members)
