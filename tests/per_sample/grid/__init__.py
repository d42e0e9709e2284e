"""A grid of layer configurations, as broad as what people build: every one is compared with autograd."""

from __future__ import annotations

from tests.per_sample.grid import attention, convolutions, dense, norms, ragged, recurrent, tables
from tests.per_sample.grid.base import Case

FAMILIES: dict[str, dict[str, Case]] = {
    "convolutions": convolutions.CASES,
    "dense": dense.CASES,
    "tables": tables.CASES,
    "norms": norms.CASES,
    "recurrent": recurrent.CASES,
    "attention": attention.CASES,
    "ragged": ragged.CASES,
}
