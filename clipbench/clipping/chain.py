"""Several clippers as one: each sees what the one before it has left."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from clipbench.clipping.base import Clipper, ClipStats, NamedParameters


class Chain(Clipper):
    """Applies `clippers` in order, as SPECTRA does before the optimizer: singular values first, then the global norm.

    `norm` is the first clipper's that has one, so that of the gradient before clipping; `clipped_fraction` the largest
    of them all. Raises ValueError for an empty list.

        >>> from clipbench.clipping import NormClip, ValueClip
        >>> layer = torch.nn.Linear(2, 1, bias=False)
        >>> layer(torch.tensor([[3.0, 4.0]])).sum().backward()
        >>> stats = Chain([ValueClip(3.0), NormClip(1.0)])(layer.named_parameters())
        >>> layer.weight.grad, stats.clipped_fraction
        (tensor([[0.7071, 0.7071]]), tensor(1., dtype=torch.float64))
    """

    def __init__(self, clippers: Sequence[Clipper]) -> None:
        if not clippers:
            raise ValueError("clippers must hold at least one clipper, got none")
        self.clippers = list(clippers)

    def __call__(self, named_parameters: NamedParameters) -> ClipStats:
        # As they came: a link that needs names is to say so, not to take made-up ones.
        items: list[Any] = [named_parameters] if isinstance(named_parameters, Tensor) else list(named_parameters)
        stats = [clipper(items) for clipper in self.clippers]
        norm = next((each.norm for each in stats if each.norm is not None), None)
        return ClipStats(norm, torch.stack([each.clipped_fraction for each in stats]).amax())

    def reseed(self, seed: int) -> None:
        for place, clipper in enumerate(self.clippers):
            clipper.reseed(seed + place)

    def state_dict(self) -> dict[str, Any]:
        return {str(place): clipper.state_dict() for place, clipper in enumerate(self.clippers)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for place, clipper in enumerate(self.clippers):
            clipper.load_state_dict(state[str(place)])

    def layer_stats(self) -> dict[str, dict[str, Tensor]]:
        """Those of the first clipper that has any."""
        return next((found for clipper in self.clippers if (found := clipper.layer_stats())), {})
