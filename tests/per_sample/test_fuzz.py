"""Ragged batches at random, against one backward pass a sample: no norm is ever wrong."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

from clipbench.per_sample import PerSampleClipper
from tests.per_sample.ragged import (
    Adaptive,
    Experts,
    Flipped,
    LastToken,
    MaskedTokens,
    Middle,
    Model,
    Packed,
    Padded,
    Permuted,
    Pieces,
    Segmented,
    TimeFirst,
    error,
)

KINDS = [nn.LSTM, nn.GRU, nn.RNN, nn.TransformerEncoder]
MODELS = [Adaptive, Experts, Flipped, LastToken, MaskedTokens, Middle, Packed, Padded, Permuted, Pieces, Segmented,
          TimeFirst]  # fmt: skip
SIZES = (2, 3, 4, 5, 9)


def draw(kind: type[Model]) -> Model:
    """A model of this kind with options at random."""

    def number(limit: int) -> int:
        return int(torch.randint(limit, ()))

    if kind is TimeFirst:
        takes = ("last", "middle", "last state", "all", "mean")
        return TimeFirst(KINDS[number(4)], takes[number(5)], 2 + number(6))
    if kind is Packed:
        return Packed(KINDS[number(3)], bool(number(2)))  # type: ignore[arg-type]
    if kind is Segmented:
        return Segmented((1.0, 4.0, 40.0)[number(3)])
    if kind is Experts:
        return Experts((2, 5, 100)[number(3)])
    if kind is Flipped:
        return Flipped(number(2))
    if kind in (Padded, LastToken):
        return kind(bool(number(2)))  # type: ignore[call-arg]
    return kind()


def batches(count: int, seed: int) -> list[str]:
    """What was wrong on `count` batches; every model sees several sizes, so that what it keeps is used again."""
    torch.manual_seed(seed)
    wrong = []
    done = 0
    while done < count:
        kind = MODELS[done % len(MODELS)]
        dtype, bound = ((torch.float64, 1e-11), (torch.float32, 5e-5))[int(torch.randint(2, ()))]
        model = draw(kind).to(dtype)
        clipper = PerSampleClipper(model, 1.0)
        for n in [SIZES[i] for i in torch.randint(len(SIZES), (5,))]:
            off = error(clipper, model, model(model.batch(n)))
            done += 1
            if not off < bound:
                wrong.append(f"{kind.__name__} n={n} {dtype}: {off:.1e}")
    return wrong


@pytest.fixture(autouse=True)
def quiet() -> object:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="no per-sample rule")  # samples of a reversed batch are mixed
        yield


def test_a_hundred_ragged_batches() -> None:
    assert batches(100, seed=0) == []


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 5))
def test_two_thousand_ragged_batches(seed: int) -> None:
    assert batches(500, seed) == []
