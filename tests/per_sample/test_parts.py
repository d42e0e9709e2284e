"""Small parts of the engine by themselves: what a whole backward pass seldom shows."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from clipbench.per_sample.opaque import NoLeaks
from clipbench.per_sample.pullback import _agree
from clipbench.per_sample.replay import Replay
from clipbench.per_sample.thresholds import PowerThreshold, Remembered, evaluate_threshold
from clipbench.per_sample.traces import Known
from clipbench.per_sample.weights import AdaptiveWeight, AutomaticWeight, NormalizedWeight, SmoothWeight


def test_positions_go_on_behind_other_ranks_samples() -> None:
    def positions(k: Tensor, norms: Tensor) -> Tensor:
        return k + 0.0 * norms

    norms = torch.ones(3, dtype=torch.float64)
    for offset in (0, 4):
        alone = evaluate_threshold(positions, Remembered(), norms, offset, 9)
        assert alone.tolist() == [offset + 1.0, offset + 2.0, offset + 3.0]
        ranked = evaluate_threshold(positions, Remembered(), norms, offset, 9, before=torch.tensor(5))
        assert ranked.tolist() == [6.0, 7.0, 8.0], "`before` counts them all"


def test_what_is_remembered_is_of_one_kind_and_never_of_another_mode() -> None:
    remembered, norms, rule = Remembered(), torch.ones(3), PowerThreshold(0.5, 1.0)
    for _ in range(2):
        assert remembered.powers(rule, 0, norms).mul_(3).tolist() == [1.5, 3.0, 4.5], "what is given is a copy"
        assert remembered.positions(0, norms).mul_(3).tolist() == [3.0, 6.0, 9.0]
    for other in (torch.ones(4), torch.ones(3, dtype=torch.float64), torch.ones(3, device="meta")):
        made = remembered.powers(rule, 0, other)
        assert (made.shape, made.dtype, made.device) == (other.shape, other.dtype, other.device)
    rule.alpha = 0.25
    assert remembered.powers(rule, 0, norms).tolist() == [0.25, 0.5, 0.75]
    assert remembered.powers(rule, 2, norms).tolist() == [0.75, 1.0, 1.25]
    assert remembered.positions(2, norms).tolist() == [3.0, 4.0, 5.0]
    with FakeTensorMode():
        fake = torch.ones(3)
        assert isinstance(remembered.powers(rule, 0, fake), FakeTensor)
        assert isinstance(remembered.positions(2, fake), FakeTensor)
    assert not isinstance(remembered.powers(rule, 0, norms), FakeTensor)


def test_a_plan_is_kept_until_something_else_is_found() -> None:
    known, replay = Known(), object.__new__(Replay)
    assert known.number(None) is None
    assert (known.number("a"), known.number("b"), known.number("a")) == (1, 2, 1)
    known.keep(1, 4, replay)
    assert known.replay(1, 4) is replay
    assert known.replay(1, 5) is known.replay(2, 4) is known.replay(None, 4) is None
    for found in (known.single, known.passed, known.single):
        before = known.version
        found.add((before,))
        assert known.version > before
        assert known.replay(1, 4) is None


@pytest.mark.parametrize("moving", [True, False])
def test_what_is_looked_at_gets_its_options_by_name(moving: bool) -> None:
    x = torch.arange(6.0).reshape(2, 3)
    with NoLeaks(moving) as looking:
        assert torch.sum(x, dim=1, keepdim=True).tolist() == [[3.0], [12.0]]
        assert looking.depth == 0, "it has come back"


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        (None, None, True),
        (torch.ones(2), None, False),
        (None, torch.ones(2), False),
        (torch.ones(2), torch.ones(3), False),
        (torch.ones(0), torch.ones(0), True),
        (torch.tensor([1.0, 2.0]), torch.tensor([1.0, 2.0 + 1e-6]), True),
        (torch.tensor([1e-9, 2.0]), torch.tensor([2e-9, 2.0]), True),
        (torch.tensor([1.0, 2.0]), torch.tensor([1.0, 2.01]), False),
        (torch.tensor([1.0, math.inf]), torch.tensor([1.0, math.nan]), True),
        (torch.tensor([1.0, math.inf]), torch.tensor([1.5, math.nan]), False),
    ],
)
def test_a_batch_agrees_with_its_loop_but_for_rounding(
    one: Tensor | None, other: Tensor | None, expected: bool
) -> None:
    assert _agree(one, other) is expected


def test_weights_by_hand() -> None:
    norms, tau = torch.tensor([0.0, 0.5, 4.0], dtype=torch.float64), torch.full((3,), 2.0, dtype=torch.float64)
    expected = {
        AutomaticWeight(0.5): [4.0, 2.0, 2 / 4.5],
        NormalizedWeight(): [0.0, 4.0, 0.5],
        AdaptiveWeight(0.5): [2.0, 2.0, 2 / (4 + 0.5 / 4.5)],
        SmoothWeight(): [1.0, 0.8, 1 / 3],
    }
    for rule, values in expected.items():
        assert rule(norms, tau).tolist() == pytest.approx(values), type(rule)
        assert rule.acts_below_threshold is True
    assert SmoothWeight()(norms, torch.full_like(norms, math.inf)).tolist() == [1.0] * 3
    assert (AutomaticWeight().stabilizer, AdaptiveWeight().offset) == (0.01, 0.1)


@pytest.mark.parametrize("bad", [0.0, -1.0, math.nan])
def test_weights_name_a_bad_option(bad: float) -> None:
    with pytest.raises(ValueError, match=f"^stabilizer must be > 0, got {bad}$"):
        AutomaticWeight(bad)
    with pytest.raises(ValueError, match=f"^offset must be > 0, got {bad}$"):
        AdaptiveWeight(bad)
