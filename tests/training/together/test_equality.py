"""Members of a batch end where they would have ended alone: every method, every optimizer, other models and data."""

from __future__ import annotations

import functools
import math

import pytest

from clipbench.training.together.members import Unbatchable
from clipbench.training.trainer import Trainer
from tests.training.together.small import (
    alone,
    batch_weights,
    choices,
    distance,
    family,
    lone_weights,
    text_folder,
    together,
)

# With batched forms throughout; other methods have a part that goes member by member, or go alone.
BATCHED = (
    "sgd", "norm_clip", "value_clip", "spectral_clip", "spectral_clip_ema", "spectral_clip_quantile",
    "soft_spectral_clip", "ps_clip", "ps_clip_constant", "micro_batch_clip",
)  # fmt: skip
DOUBLE = 1e-10  # of the largest weight, after 200 steps in float64
TOKENS = [
    "dataset=shakespeare_char", "model=transformer", "model.layers=1", "model.heads=2", "model.width=16",
    "dataset.context=8", "dataset.held_out=0.2", "data.verify=false", "data.download=false",
]  # fmt: skip


def shape_of(method: str) -> list[str]:
    """Micro-batch clipping only shows with more than one micro-batch."""
    return ["accumulation=2", "batch_size=4"] if "micro" in method else []


@functools.cache
def lone_in_double(method: str) -> list[Trainer]:
    return alone(family(method, "precision=fp64", *shape_of(method)))


@pytest.mark.parametrize(
    "method",
    [
        name if name in BATCHED else pytest.param(name, marks=[pytest.mark.slow, pytest.mark.long])
        for name in choices("method")
    ],
)
def test_weights_of_every_method_agree_in_double(method: str) -> None:
    requests = family(method, "precision=fp64", *shape_of(method))
    if "update" in requests[0].config["method"]:
        with pytest.raises(Unbatchable, match="update"):
            together(requests)
        return
    ours = together(requests)
    theirs = lone_in_double(method)
    assert distance(batch_weights(ours), lone_weights(theirs)) < DOUBLE
    for member, lone in zip(ours.members, theirs, strict=True):
        assert member.status == lone.status == "ok"
        assert [(row["step"], row["split"], row["metric"]) for row in member.rows] == [
            (row["step"], row["split"], row["metric"]) for row in lone.rows
        ]
        for row, other in zip(member.rows, lone.rows, strict=True):
            if not row["metric"].endswith("_per_second"):
                assert math.isclose(row["value"], other["value"], rel_tol=1e-6, abs_tol=1e-12), row
        assert math.isclose(member.finals()["final"]["train_loss"], lone.finals()["final"]["train_loss"], rel_tol=1e-6)


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("method", choices("method"))
def test_single_precision_is_no_further_from_double_than_twice_a_lone_run(method: str) -> None:
    single = family(method, *shape_of(method))
    if "update" in single[0].config["method"]:
        pytest.skip("goes alone, as the test above shows")
    truth = lone_weights(lone_in_double(method))
    assert distance(batch_weights(together(single)), truth) <= 2 * distance(lone_weights(alone(single)), truth)


@pytest.mark.parametrize(
    "optimizer", [name for name in choices("optimizer") if name != "airbench"]
)  # needs its network
def test_weights_of_every_optimizer_agree_in_double(optimizer: str) -> None:
    words = [f"optimizer={optimizer}", "optimizer.weight_decay=0.01", "schedule=cosine", "schedule.warmup=10"]
    requests = family("norm_clip", "precision=fp64", *words)
    assert distance(batch_weights(together(requests)), lone_weights(alone(requests))) < DOUBLE


@pytest.mark.parametrize(
    "words",
    [
        ["optimizer.nesterov=true"],
        ["optimizer.momentum=0.0"],
        ["model.activation=tanh", "model.bias=false"],
        ["noise=isotropic"],
        ["noise=none"],
        ["dataset.noise_on=gradients"],
        ["dataset.problem=classification", "dataset.outputs=3", "dataset.label_smoothing=0.1"],
        ["schedule=step", "schedule.warmup=7"],
        ["method.clipper.skip=[]"],
        ["method.clipper.backend=svd"],
        ["method.clipper.backend=randomized", "+method.clipper.rank=3"],
        ["batch_size=32"],
        ["log_layers=true"],
    ],
    ids=" ".join,
)
def test_other_settings_agree_in_double(words: list[str]) -> None:
    requests = family("spectral_clip", "precision=fp64", *words)
    ours, theirs = together(requests), alone(requests)
    assert distance(batch_weights(ours), lone_weights(theirs)) < DOUBLE
    assert [row["metric"] for row in ours.members[1].rows] == [row["metric"] for row in theirs[1].rows]


@pytest.mark.parametrize(
    ("method", "words"),
    [
        ("norm_clip", ["skip.whole=['*bias']"]),
        ("norm_clip", ["skip.whole=['*']"]),
        ("micro_batch_clip", ["skip.whole=['*bias']", "accumulation=2", "batch_size=4"]),
        ("micro_batch_spectral", [
            "accumulation=2", "batch_size=16", "method.estimator.clipper.backend=randomized",
            "+method.estimator.clipper.rank=1", "+method.estimator.clipper.oversample=0",
            "+method.estimator.clipper.iterations=0", "method.estimator.clipper.threshold=0.01",
        ]),
    ],
    ids=["norm, a part skipped", "norm, all skipped", "micro-batches, a part skipped", "micro-batches that draw"],
)  # fmt: skip
def test_what_is_skipped_and_what_is_drawn_agree_in_double(method: str, words: list[str]) -> None:
    requests = family(method, "precision=fp64", "steps=20", *words)
    ours, theirs = together(requests), alone(requests)
    assert distance(batch_weights(ours), lone_weights(theirs)) < DOUBLE
    for member, lone in zip(ours.members, theirs, strict=True):
        for row, other in zip(member.rows, lone.rows, strict=True):
            assert (row["step"], row["metric"]) == (other["step"], other["metric"])
            if not row["metric"].endswith("_per_second"):
                assert math.isclose(row["value"], other["value"], rel_tol=1e-6, abs_tol=1e-12), row


def test_numbers_may_differ_in_every_member() -> None:
    words = [
        ["optimizer.momentum=0.0", "noise.probability=0.5"],
        ["optimizer.momentum=0.5", "optimizer.weight_decay=0.1", "noise.scale=0.1"],
        ["optimizer.momentum=0.9", "schedule.final=0.5", "noise.index=3.0"],
    ]
    base = ["precision=fp64", "schedule=cosine"]
    requests = [family("spectral_clip", *base, *own)[place] for place, own in enumerate(words)]
    assert distance(batch_weights(together(requests)), lone_weights(alone(requests))) < DOUBLE


@pytest.mark.parametrize("method", ["sgd", "ps_clip", "spectral_clip_ema"])
def test_a_transformer_with_dropout_agrees(method: str) -> None:
    requests = family(method, *TOKENS, f"data.root={text_folder()}", "precision=fp64", "noise=none", "steps=30")
    ours, theirs = together(requests), alone(requests)
    assert distance(batch_weights(ours), lone_weights(theirs)) < DOUBLE
