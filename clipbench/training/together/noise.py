"""Noise on the members' gradients, with the draws that each would have alone; members with one seed share them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from clipbench.training.noise import Isotropic, Noise, RankOne
from clipbench.training.seeding import derive
from clipbench.training.together.gradients import Gradients
from clipbench.training.together.members import Members

Factors = list[tuple[Tensor, Tensor]]


class MemberNoise:
    """The members' noises as one."""

    def __init__(self, members: Members) -> None:
        self.members = members
        own: dict[tuple[Any, ...], tuple[int, Noise]] = {}
        self._keys = []
        for setup in members.setups:
            assert setup.noise is not None  # all have one or none has
            known = type(setup.noise) in (RankOne, Isotropic)
            what = tuple(sorted(vars(setup.noise).items())) if known else (id(setup.noise),)
            key = (setup.options.seed, type(setup.noise), *what)
            own.setdefault(key, (setup.options.seed, setup.noise))
            self._keys.append(key)
        self._own = own
        self._generator = torch.Generator(device=members.device)
        self._rank_one = all(type(noise) is RankOne for _, noise in own.values())

    def __call__(self, gradients: Gradients, step: int) -> None:
        """Add the noise of `step`."""
        names = list(gradients)
        shapes = [tuple(self.members.weights[name].shape[1:]) for name in names]
        if self._rank_one:
            self._add_factors(gradients, shapes, step)
            return
        drawn = {key: self._draw(noise, shapes, seed, step) for key, (seed, noise) in self._own.items()}
        for place, name in enumerate(names):
            stacked = torch.stack([drawn[key][place] for key in self._keys])
            gradients[name].replace(gradients[name].formed + stacked.to(self.members.dtype))

    def _seed(self, seed: int, step: int) -> torch.Generator:
        return self._generator.manual_seed(derive(seed, "noise", step))

    def _draw(self, noise: Noise, shapes: Sequence[tuple[int, ...]], seed: int, step: int) -> list[Tensor]:
        """What any noise adds, from what it makes of zeros."""
        blank = [
            nn.Parameter(torch.empty(shape, dtype=self.members.dtype, device=self.members.device)) for shape in shapes
        ]
        for parameter in blank:
            parameter.grad = torch.zeros_like(parameter)
        noise([(str(place), parameter) for place, parameter in enumerate(blank)], self._seed(seed, step))
        return [parameter.grad for parameter in blank if parameter.grad is not None]

    def _add_factors(self, gradients: Gradients, shapes: Sequence[tuple[int, ...]], step: int) -> None:
        """Rank-one noise as one more row of every gradient; nothing where no member is hit."""
        drawn: dict[tuple[Any, ...], Factors] = {}
        for key, (seed, noise) in self._own.items():
            assert isinstance(noise, RankOne)
            generator = self._seed(seed, step)
            if noise.hits(generator):
                drawn[key] = noise.factors(shapes, generator)
        if not drawn:
            return
        for place, layer in enumerate(gradients.values()):
            pairs = {key: factors[place] for key, factors in drawn.items()}
            left = _stacked([pairs[key][0] if key in pairs else None for key in self._keys], self.members.dtype)
            right = _stacked([pairs[key][1] if key in pairs else None for key in self._keys], self.members.dtype)
            if layer.rows is not None and not layer.is_formed:
                inputs, delta = layer.rows
                layer.replace_rows((torch.cat([inputs, right[:, None]], 1), torch.cat([delta, left[:, None]], 1)))
            else:
                outer = left[:, :, None] * right[:, None, :]
                layer.replace(layer.formed + outer.view(layer.formed.shape))


def _stacked(vectors: Sequence[Tensor | None], dtype: torch.dtype) -> Tensor:
    """The members' vectors (R, size), zeros for those that have none."""
    some = next(vector for vector in vectors if vector is not None)
    if all(vector is some for vector in vectors):
        return some.to(dtype).expand(len(vectors), -1)
    zero = torch.zeros_like(some)
    return torch.stack([zero if vector is None else vector for vector in vectors]).to(dtype)
