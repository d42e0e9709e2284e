"""What the tests compose for themselves is what a command composes."""

from __future__ import annotations

import pytest

from clipbench.cli.compose import compose
from tests.composed import composed

WORDS = [
    [],
    ["method=ps_clip", "optimizer=muon", "steps=7", "dataset.samples=64"],
    ["method=spectra", "optimizer=adam", "optimizer.lr=0.25", "noise=rank_one", "noise.scale=2"],
    ["method=micro_batch_clip", "skip.whole=[head]", "accumulation=2"],
    ["dataset=shakespeare_char", "method=spam", "model.layers=1", "optimizer=adamw"],
]


@pytest.mark.parametrize("words", WORDS, ids=[" ".join(words) or "nothing" for words in WORDS])
def test_it_is_what_hydra_composes(words: list[str]) -> None:
    first = composed(*words)
    assert first == compose(words)
    first["method"]["name"] = "changed"
    first["skip"]["layers"].append("x")
    assert composed(*words) == compose(words), "a caller's changes are its own"
