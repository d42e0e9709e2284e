"""Outliers put into a batch against whole backwards; singular values; the study's rows and resume."""

from __future__ import annotations

import math

import pytest
import torch

from clipbench.cli.compose import compose
from clipbench.data.base import Batch, Spec
from clipbench.data.tasks import Classification, NextToken
from clipbench.errors import ConfigError
from clipbench.models import MLP, Transformer
from clipbench.runs.request import request
from clipbench.studies.base import read_metric
from clipbench.studies.outliers import change, matrix_parameters, singular_values, spoiled, with_outliers
from clipbench.studies.spectrum import ranks
from clipbench.training.setup import build_study
from tests.reference import spectrum as reference


def draw(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def classes(n: int) -> Batch:
    return Batch(torch.randn(n, 12, generator=draw(), dtype=torch.float64), torch.randint(5, (n,), generator=draw()))


def tokens(n: int) -> Batch:
    text = torch.randint(7, (n, 9), generator=draw())
    return Batch(text[:, :-1], text[:, 1:])


def problem(name: str):
    torch.manual_seed(0)
    if name == "mlp":
        return MLP(Spec("vector", (12,), 5, "x"), widths=[16, 16]).double(), Classification(), classes(24), 5
    model = Transformer(Spec("tokens", (8,), 7, "x"), layers=1, heads=2, width=16, dropout=0.0)
    return model.double(), NextToken(), tokens(24), 7


@pytest.mark.parametrize("name", ["mlp", "transformer"])
def test_sums_of_parts_equal_whole_backwards(name):
    model, task, everything, outputs = problem(name)
    batch, spare = (Batch(everything.inputs[s], everything.targets[s]) for s in (slice(16), slice(16, 24)))
    clean, changed = with_outliers(model, task, batch, spare, [1, 4], 10.0, outputs, draw(3))
    same = draw(3)
    first = Batch(batch.inputs[:4], batch.targets[:4])
    replaced = {"targets": spoiled(first, "targets", outputs, same), "control": spare}
    replaced["inputs"] = spoiled(first, "inputs", outputs, same)

    def twin(inputs, targets, weights):
        return reference.gradients(model, lambda o, t: task.losses(o, Batch(inputs, t)), inputs, targets, weights)

    plain = twin(batch.inputs, batch.targets, torch.ones(16).double())
    assert set(changed) == {(kind, m) for kind in ("control", "targets", "inputs", "loss") for m in (1, 4)}
    assert set(clean) == set(matrix_parameters(model))
    for m in (1, 4):
        for kind in ("control", "targets", "inputs", "loss"):
            inputs, targets, weights = batch.inputs.clone(), batch.targets.clone(), torch.ones(16).double()
            if kind == "loss":
                weights[:m] = 10.0
            else:
                inputs[:m], targets[:m] = replaced[kind].inputs[:m], replaced[kind].targets[:m]
            wanted = twin(inputs, targets, weights)
            for layer, found in changed[kind, m].items():
                scale = wanted[layer].abs().max()
                assert (found - wanted[layer].flatten(1)).abs().max() < 1e-12 * scale
                assert (found - clean[layer]).abs().max() > 1e-3 * scale
    for layer, found in clean.items():
        assert (found - plain[layer].flatten(1)).abs().max() < 1e-12 * plain[layer].abs().max()


def test_change_equals_the_twins_excess():
    clean, control, changed = (torch.randn(12, 40, generator=draw(i), dtype=torch.float64) for i in (1, 2, 3))
    changed = changed + 30 * torch.outer(torch.randn(12, generator=draw(4)), torch.randn(40, generator=draw(5)))
    parts = [change(singular_values(clean), singular_values(g), 1e-9) for g in (changed, control)]
    found = (parts[0][0] - parts[0][1]) - (parts[1][0] - parts[1][1])
    assert found == pytest.approx(reference.excess(clean, changed, control), rel=1e-9)
    assert found > math.log(1.5)


@pytest.mark.parametrize("shape", [(7, 30), (30, 7), (1, 5)])
def test_singular_values(shape):
    matrix = torch.randn(shape, generator=draw(), dtype=torch.float64)
    assert torch.allclose(singular_values(matrix), torch.linalg.svdvals(matrix), rtol=1e-9)


def test_change_counts_nothing_below_the_floor():
    before = torch.tensor([8.0, 4.0, 2.0, 1.0, 1e-9, 0.0]).double()
    after = torch.tensor([16.0, 4.0, 2.0, 3.0, 5.0, 5.0]).double()
    assert change(before, after, 1e-6) == (pytest.approx(math.log(2)), 0.0)


def test_embeddings_are_left_out_also_when_the_head_is_tied():
    for tied in (False, True):
        model = Transformer(Spec("tokens", (8,), 7, "x"), layers=1, heads=2, width=16, tied_head=tied)
        names = set(matrix_parameters(model))
        assert not any(name.startswith(("tokens", "positions")) for name in names)
        assert ("head.weight" in names) == (not tied)
        assert all(dict(model.named_parameters())[name].dim() == 2 for name in names)


def test_outliers_are_what_they_are_called():
    batch = classes(500)
    wrong = spoiled(batch, "targets", 5, draw(1))
    assert (wrong.targets != batch.targets).all()
    assert torch.equal(wrong.inputs, batch.inputs)
    assert len(wrong.targets.unique()) == 5
    noise = spoiled(batch, "inputs", 5, draw(1))
    assert torch.equal(noise.targets, batch.targets)
    assert not torch.equal(noise.inputs, batch.inputs)
    text = tokens(500)
    for kind, kept in (("targets", "inputs"), ("inputs", "targets")):
        found = spoiled(text, kind, 7, draw(2))
        assert torch.equal(getattr(found, kept), getattr(text, kept))
        changed = getattr(found, kind)
        assert (changed != getattr(text, kind)).double().mean() > 0.8
        assert set(changed.unique().tolist()) == set(range(7))


def study(*overrides: str):
    wanted = request(compose(["experiment=spectrum/smoke", "device=cpu", *overrides]))
    return build_study(wanted.config, wanted.options, wanted.device)


def values(made):
    return [(row["step"], row["metric"], row["value"]) for row in made.rows]


def test_rows_hold_what_the_claim_needs_and_a_resume_changes_nothing():
    whole, first, second = study(), study(), study()
    for _ in whole.run():
        pass
    for _ in first.run():
        first.stopping = first.done == 2
    second.load_state_dict(first.state_dict())
    for _ in second.run():
        pass
    assert values(second) == values(whole)
    found = {(step, name): value for step, name, value in values(whole)}
    layers = {read_metric(name)[1]["layer"] for _, name in found if "layer=" in name}
    assert layers == set(matrix_parameters(whole.setup.model))
    for step in (5, 20):
        for layer in layers:
            for kind in ("targets", "inputs", "loss"):

                def mean(statistic, of, step=step, layer=layer):
                    return sum(found[step, f"{statistic}/kind={of}/count=2/layer={layer}/part={i}"] for i in (0, 1)) / 2

                own = mean("top", kind) - mean("bulk", kind)
                control = mean("top", "control") - mean("bulk", "control")
                assert found[step, f"excess/kind={kind}/count=2/layer={layer}"] == pytest.approx(own - control)
    assert whole.trainer.done == 20
    assert whole.finals()["final"]["study_train_loss"] > 0


def test_measuring_leaves_the_training_as_it_was():
    measured, plain = study(), study()
    for _ in measured.run():
        pass
    for step in range(20):
        plain.trainer.step(step)
    for a, b in zip(measured.setup.model.parameters(), plain.setup.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_ranks_are_spread_without_repetition():
    assert ranks(3) == [1, 2, 3]
    found = ranks(384)
    assert found[0] == 1
    assert found[-1] == 384
    assert len(found) <= 40


@pytest.mark.parametrize(("option", "value"), [
    ("checkpoints", "[]"), ("checkpoints", "[5,5]"), ("counts", "[2,1]"), ("counts", "[1,2,64]"), ("decides", "3"),
    ("batches", "3"), ("shown_batches", "6"), ("factor", "0.0"), ("floor", "1.0"), ("groups", "0"),
])  # fmt: skip
def test_bad_input_names_the_option(option, value):
    with pytest.raises(ConfigError, match=f"study.{option} must be "):
        study(f"study.{option}={value}")


def test_real_valued_targets_are_refused():
    with pytest.raises(ValueError, match="dataset must be with classes or tokens"):
        for _ in study("dataset.problem=regression", "dataset.outputs=1", "dataset.noise_on=labels").run():
            pass
