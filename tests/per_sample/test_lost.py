"""A sample that is not finite is dropped alone, also where rows have no proven owner."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from clipbench.per_sample import PerSampleClipper
from tests.per_sample.common import square_loss
from tests.per_sample.constructs import CONSTRUCTS
from tests.per_sample.ragged import MODELS, Experts, error, squares


@pytest.mark.filterwarnings("ignore:no per-sample rule")
def test_one_lost_sample_is_one_dropped() -> None:
    """In every construct, at a model's first step: the others keep their norms. Nodes that hide their rows cannot."""
    hidden = {"custom function", "addmm, scaled"}
    for name, (build, inputs) in CONSTRUCTS.items():
        torch.manual_seed(0)
        model, x = build(), inputs(5)
        if not x.is_floating_point() or name in hidden:
            continue
        norms = PerSampleClipper(model, 1.0).norms(square_loss(model, x))
        losses = square_loss(model, x)
        factors = torch.ones(5)
        factors[1] = math.nan
        stats = PerSampleClipper(model, float("inf")).backward(losses * factors)
        others = torch.arange(5) != 1
        assert stats.dropped == 1, name
        torch.testing.assert_close(stats.norms[others], norms[others], msg=name)
        assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters()), name


@pytest.mark.filterwarnings("error:no per-sample rule")
@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("name", MODELS)
def test_where_rows_move_by_data(name: str, bad: float) -> None:
    """Packed, routed, masked, sorted: by the indices of this very step."""
    torch.manual_seed(0)
    model = MODELS[name]()
    losses = model(model.batch(5))
    norms = PerSampleClipper(model, 1.0).norms(losses)
    factors = torch.ones(5)
    factors[1] = bad
    stats = PerSampleClipper(model, float("inf")).backward(losses * factors)
    others = torch.arange(5) != 1
    assert stats.dropped == 1
    torch.testing.assert_close(stats.norms[others], norms[others], rtol=1e-4, atol=1e-6)
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


class Idle(Experts):
    """Experts that are called whether or not they got a token; the second gets none."""

    def __init__(self) -> None:
        super().__init__()
        with torch.no_grad():
            self.gate.bias[1] -= 1e3

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(0, 1)
        scores = self.gate(tokens).softmax(1)
        out = torch.zeros_like(tokens)
        for number, expert in enumerate(self.experts):
            mine = torch.nonzero(scores.argmax(1) == number)[:, 0]
            out = out.index_add(0, mine, expert(tokens[mine]) * scores[mine, number, None])
        return squares(self.head(out.view_as(x) + x))


@pytest.mark.filterwarnings("error:no per-sample rule")
def test_experts_without_tokens_take_no_slow_path() -> None:
    """Their gradients are zeros, as autograd's are."""
    torch.manual_seed(0)
    model = Idle()
    clipper = PerSampleClipper(model, 1.0)
    for n in (2, 3, 9, 3):
        assert error(clipper, model, model(model.batch(n))) < 2e-5
        assert isinstance(model.experts[1], nn.Linear)
        assert model.experts[1].weight.grad is not None
        assert not model.experts[1].weight.grad.any()
