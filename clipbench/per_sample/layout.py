"""The order of a use's rows by sample, and how they are brought into the shape (n, positions, *features).

A use's output has `rows` rows. In the two common layouts they are sample-major (k, t) or position-major (t, k), and
views do. In any other, `Segments`, rows are gathered by sample and padded with zeros to the longest: a ragged batch
costs a copy of its factors, not n backward passes. Rows whose gradient is zero belong to nobody and are left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes, _get_current_dispatch_mode_stack
from torch.utils._pytree import tree_map_only

from clipbench.per_sample.care import HALVES

NOBODY, SHARED = 0, -1
"""Owners of a row that are no sample; sample k is k + 1."""
PADDING = 2.0
"""Padded rows per row above which samples are treated in groups of similar size."""


class Layout(Enum):
    """Order of the n · positions rows of a layer's output: MAJOR is k · positions + t, MINOR is t · n + k."""

    MAJOR = "major"
    MINOR = "minor"

    def split(self, rows: Tensor, n: int) -> Tensor:
        """(n · positions, *features) → (n, positions, *features), a view."""
        if self is Layout.MAJOR:
            return rows.unflatten(0, (n, -1))
        return rows.unflatten(0, (-1, n)).transpose(0, 1)

    def spread(self, values: Tensor, rows: int) -> Tensor:
        """One value per sample (n,) → one per row (rows,)."""
        n = values.shape[0]
        if rows == n:
            return values
        if self is Layout.MAJOR:
            return values[:, None].expand(n, rows // n).reshape(rows)
        return values.expand(rows // n, n).reshape(rows)

    def positions(self, rows: int, n: int) -> int:
        """Second axis of `split`."""
        return rows // n


Places = tuple[Tensor, Tensor | None]
"""Numbers of rows (b, m), and where there is none."""


class Segments:
    """Rows in any order and number per sample, from their owners (rows,), an int64 tensor on the CPU."""

    def __init__(self, owners: Tensor, n: int) -> None:
        self.owners = owners
        self.n = n
        kept = owners > NOBODY
        self.counts = torch.bincount(owners[kept] - 1, minlength=n)
        order = torch.argsort(torch.where(kept, owners, n + 1), stable=True)
        self.order = order[: int(kept.sum())]
        self.longest = max(int(self.counts.max()), 1)
        self._moved: dict[tuple[object, ...], Any] = {}

    def positions(self, rows: int, n: int) -> int:
        """Second axis of `split`."""
        return self.longest

    def split(self, rows: Tensor, n: int) -> Tensor:
        """(rows, *features) → (n, longest, *features), a copy, with zeros behind a sample's last row."""
        return take(rows, *self._on(rows.device, "all", self._places_of_all))

    def groups(self, device: torch.device) -> Sequence[tuple[Tensor, Tensor, Tensor | None]]:
        """Samples of similar size: their numbers (b,), rows (b, m) and where there is none (b, m); m within 2 ×."""
        return self._on(device, "groups", self._groups)

    @property
    def lopsided(self) -> bool:
        """Whether padding all samples to the longest would cost more than it saves."""
        return self.n * self.longest > PADDING * max(len(self.order), 1)

    def spread(self, values: Tensor, rows: int) -> Tensor:
        """One value per sample (n,) → one per row (rows,), zero (false) in nobody's."""
        padded = torch.cat([values.new_zeros(1), values])
        return padded[self._on(values.device, "owners", lambda: (self.owners.clamp(min=NOBODY),))[0]]

    def _places_of_all(self) -> Places:
        return self._places(torch.arange(self.n, device="cpu"), self.longest)

    def _places(self, samples: Tensor, longest: int) -> Places:
        starts = self.counts.cumsum(0) - self.counts
        steps = torch.arange(longest, device="cpu")
        missing = steps >= self.counts[samples, None]
        places = (starts[samples, None] + steps).masked_fill(missing, 0)
        return (self.order[places] if len(self.order) else places), missing if bool(missing.any()) else None

    def _groups(self) -> tuple[tuple[Tensor, Tensor, Tensor | None], ...]:
        levels = torch.ceil(torch.log2(self.counts.clamp(min=1).double())).masked_fill(self.counts == 0, -1)
        found = []
        for level in levels.unique().tolist():
            if level >= 0:
                samples = torch.nonzero(levels == level)[:, 0]
                found.append((samples, *self._places(samples, int(self.counts[samples].max()))))
        return tuple(found)

    def _on(self, device: torch.device, key: str, make: Any) -> Any:
        """What `make` returns, on a device; made once."""
        found = self._moved.get((device, key))
        if found is None:
            with _disable_current_modes():
                found = self._moved[(device, key)] = tree_map_only(Tensor, lambda part: part.to(device), make())
        if _get_current_dispatch_mode_stack():  # tensors without values only take their like
            found = tree_map_only(Tensor, lambda part: torch.tensor(part.cpu().numpy(), device=device), found)
        return found


def take(rows: Tensor, places: Tensor, missing: Tensor | None) -> Tensor:
    """Rows (b, m) by number, zeros where they are missing (None: nowhere): (b, m, *features)."""
    taken = rows[places]
    if missing is None:
        return taken
    return taken.masked_fill_(missing.reshape(*missing.shape, *[1] * (rows.dim() - 1)), 0)


RowLayout = Layout | Segments


class Layouts:
    """Makes layouts from owners; uses with the same owners share one, and so its versions of γ."""

    def __init__(self, n: int) -> None:
        self.n = n
        self._made: dict[bytes, RowLayout | None] = {}

    def find(self, owners: Tensor) -> RowLayout | None:
        """The layout of rows with these owners (rows,), or None where a row is shared by samples."""
        key = owners.numpy().tobytes()
        if key not in self._made:
            self._made[key] = self._make(owners)
        return self._made[key]

    def _make(self, owners: Tensor) -> RowLayout | None:
        n, rows = self.n, owners.shape[0]
        if bool((owners < NOBODY).any()):
            return None
        if rows and rows % n == 0:
            row = torch.arange(rows, device="cpu")
            for layout, sample in ((Layout.MAJOR, row // (rows // n)), (Layout.MINOR, row % n)):
                if bool(((owners == sample + 1) | (owners == NOBODY)).all()):
                    return layout
        return Segments(owners, n)


class SampleWeights:
    """γ, one weight per sample, (n,); remembers its versions by row, which many layers share."""

    def __init__(self, values: Tensor) -> None:
        self.values = values
        self._column = values.unsqueeze(1)
        self._columns: dict[tuple[RowLayout, int, torch.dtype], Tensor] = {}

    def times(self, rows: Tensor, layout: RowLayout) -> Tensor:
        """γ times rows (rows, *features), in their dtype."""
        column = self.column(layout, rows.shape[0], rows.dtype)
        if rows.dim() != 2:
            column = column.view(-1, *[1] * (rows.dim() - 1))
        return (rows * column).to(rows.dtype)

    def column(self, layout: RowLayout, rows: int, dtype: torch.dtype) -> Tensor:
        """γ of every row's sample, (rows, 1); in float32 beside half precisions, which do not hold small weights."""
        dtype = torch.float32 if dtype in HALVES else dtype
        if rows == self.values.shape[0] and dtype == self.values.dtype and isinstance(layout, Layout):
            return self._column
        key = (layout, rows, dtype)
        found = self._columns.get(key)
        if found is None:
            found = self._columns[key] = layout.spread(self.values, rows).to(dtype).unsqueeze(1)
        return found
