"""All engines of the benchmark give the same clipped gradient, and one that does not is found out."""

from __future__ import annotations

import pytest
import torch

from clipbench.bench import cell, peers
from clipbench.bench.peers import ENGINES, optimizer_step
from clipbench.bench.problems import Problem, problem

# float32's own rounding, and Opacus' 10⁻⁶ beside the norm
BOUNDS = {"sgd": 1e-5, "clipbench": 1e-5, "vmap": 1e-5, "opacus_hooks": 1e-5, "opacus_ghost": 1e-4}


def images() -> Problem:
    """A small convolutional network, five samples."""
    torch.manual_seed(0)
    layers = [torch.nn.Conv2d(3, 4, 3, stride=2, padding=1), torch.nn.ReLU(), torch.nn.Flatten()]
    model = torch.nn.Sequential(*layers, torch.nn.Linear(64, 5))
    return Problem(model, torch.randn(5, 3, 8, 8), torch.arange(5), problem("alexnet", 1).losses)


@pytest.mark.parametrize("model", ["mlp_8", "transformer_4"])
def test_engines_agree_with_autograd_on_batches_of_one(model: str) -> None:
    found = cell.errors(model, list(ENGINES))["errors"]
    assert list(found) == list(ENGINES)
    for engine, error in found.items():
        assert error < BOUNDS[engine], (engine, error)


@pytest.mark.parametrize("threshold", [0.3, 1e6])
def test_engines_agree_on_a_convolution(threshold: float) -> None:
    reference = cell.gradient_of("clipbench", images(), threshold)
    for engine, chunk in [("vmap", 0), ("vmap", 2), ("opacus_hooks", 0), ("opacus_ghost", 0)]:
        found = cell.gradient_of(engine, images(), threshold, chunk)
        assert torch.allclose(found, reference, rtol=1e-4, atol=1e-6), (engine, chunk)
    clips = not torch.allclose(reference, cell.gradient_of("sgd", images(), threshold), rtol=1e-4, atol=1e-6)
    assert clips == (threshold < 1)


def test_a_wrong_engine_has_a_large_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ENGINES, "vmap", peers.sgd)  # clips nothing
    assert cell.errors("mlp_8", ["vmap"])["errors"]["vmap"] > 1e-2


def test_engines_that_cannot_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*arguments: object) -> peers.Call:
        raise ImportError("No module named 'opacus'", name="opacus")

    def broken(*arguments: object) -> peers.Call:
        raise RuntimeError("no rule for this layer")

    monkeypatch.setitem(ENGINES, "opacus_hooks", missing)
    monkeypatch.setitem(ENGINES, "opacus_ghost", broken)
    found = cell.errors("mlp_8", ["opacus_hooks", "opacus_ghost"])["errors"]
    assert found == {"opacus_hooks": "not installed: opacus", "opacus_ghost": "failed: no rule for this layer"}


@pytest.mark.parametrize("engine", ENGINES)
def test_steps_do_not_accumulate(engine: str) -> None:
    """Three steps with momentum end where three steps of a loop by hand end."""
    own, by_hand = problem("mlp_8", 4), problem("mlp_8", 4)
    step = optimizer_step(engine, own, threshold=1e6)
    optimizer = torch.optim.SGD(by_hand.model.parameters(), lr=1e-4, momentum=0.9)
    for _ in range(3):
        step()
        optimizer.zero_grad()
        by_hand.losses(by_hand.model(by_hand.inputs), by_hand.targets).mean().backward()
        optimizer.step()
    for one, other in zip(own.model.parameters(), by_hand.model.parameters(), strict=True):
        assert torch.allclose(one, other, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("name", ["resnet", "mlp", "mlp_0", "alexnet_8", "transformer_x"])
def test_unknown_problems_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"^models must be .*, got {name}$"):
        problem(name, 2)


def test_dropout_can_be_switched_off() -> None:
    off = problem("transformer_4", 2, dropout=False)
    assert torch.equal(off.model(off.inputs), off.model(off.inputs))
    on = problem("transformer_4", 2)
    assert not torch.equal(on.model(on.inputs), on.model(on.inputs))
