"""Owners through an operation that is linear in its gradients: run on numbers that spell them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten

from clipbench.per_sample.surrogates import NOBODY, SHARED

LEVELS = 32
"""Values of one digit of an owner's number; digit d is spelt 2**d."""
ROUNDING = 2.0**-18
"""Relative difference from a power of two that rounding may leave. A sample's part in a sum of 2**18 others' goes
unseen: far longer sums than one backward operation has over samples."""


class Unprovable(Exception):
    """The graph holds an operation whose effect on owners is not known."""


class Speller:
    """Spells owners 1 … n in base `LEVELS`."""

    def __init__(self, n: int) -> None:
        self.n = n
        self.digits = 1
        while LEVELS**self.digits < n:
            self.digits += 1
        self._generators: dict[torch.device, torch.Generator] = {}

    def through(
        self,
        function: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        outputs: Sequence[Any],
        owners_of: Callable[[Any], Tensor | None],
    ) -> list[Tensor]:
        """Owners of all `outputs` of `function` that are tensors, each of its shape. Raises Unprovable."""
        leaves, structure = tree_flatten((args, kwargs))
        owners = [owners_of(leaf) for leaf in leaves]
        sizes = [self._positive(leaf) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        plain = [x if own is None else x * (own != NOBODY) for x, own in zip(sizes, owners, strict=True)]

        def run(values: Sequence[Any]) -> list[Tensor]:
            # copies, for an operation that writes into what it is given
            positional, named = structure.unflatten([x.clone() if isinstance(x, Tensor) else x for x in values])
            found = tree_flatten(function(*positional, **named))[0]
            wanted = [x for x, output in zip(found, outputs, strict=True) if isinstance(output, Tensor)]
            if not all(isinstance(x, Tensor) for x in wanted):
                raise Unprovable(f"{function} without all of its outputs")
            return [(torch.view_as_real(x.resolve_conj()) if x.is_complex() else x).float() for x in wanted]

        try:
            base = run(plain)
            others = [
                run([x if own is None else self._spell(x, own, place) for x, own in zip(plain, owners, strict=True)])
                for place in range(self.digits)
            ]
        except (RuntimeError, TypeError, IndexError) as error:
            raise Unprovable(f"{function}: {error}") from error
        tensors = [output for output in outputs if isinstance(output, Tensor)]
        found: list[Tensor] = []
        for one, digits, like in zip(base, zip(*others, strict=True), tensors, strict=True):
            decoded = self._decode(one, digits)
            if like.is_complex():
                decoded = combine(decoded[..., 0], decoded[..., 1])
            found.append(decoded.expand(like.shape))
        return found

    def _spell(self, plain: Tensor, owners: Tensor, place: int) -> Tensor:
        level = torch.floor((owners - 1) / LEVELS**place) % LEVELS
        lost = complex(torch.nan, torch.nan) if plain.is_complex() else torch.nan
        return torch.where(owners == SHARED, lost, plain * torch.exp2(level))

    def _decode(self, base: Tensor, others: Sequence[Tensor]) -> Tensor:
        """Owners from an operation's plain output and the outputs for every digit."""
        owners, empty = torch.ones_like(base), base == 0
        clean = ~empty
        for place, other in enumerate(others):
            level = torch.log2(other / base).round()
            power = torch.exp2(level) * base
            clean &= ((other - power).abs() <= ROUNDING * power.abs()) & (level >= 0) & (level < LEVELS)
            owners += level * LEVELS**place
            empty &= other == 0
        clean &= owners <= self.n
        return torch.where(empty, NOBODY, torch.where(clean, owners, SHARED))

    def _positive(self, like: Tensor) -> Tensor:
        """Random numbers of its shape, in float32, in place of a tensor's; integers stay as they are."""
        if not (like.is_floating_point() or like.is_complex()):
            return like
        device = label_device(like)
        if device not in self._generators:
            self._generators[device] = torch.Generator(device).manual_seed(0)
        parts = (2,) if like.is_complex() else ()
        made = torch.empty((*like.shape, *parts), device=device)
        made.uniform_(0.5, 1.5, generator=self._generators[device])
        return torch.view_as_complex(made) if parts else made


def combine(first: Tensor, second: Tensor) -> Tensor:
    """Owners of a sum."""
    alone = torch.where(second == first, first, SHARED)
    return torch.where(first == NOBODY, second, torch.where(second == NOBODY, first, alone))


def label_device(tensor: Tensor) -> torch.device:
    """Where owners are computed: beside the tensor, or on the CPU for one without values."""
    return torch.device("cpu") if hasattr(tensor, "fake_mode") else tensor.device
