"""The training loop: same seed, same batches; no host synchronisation; every method file composes and runs."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from clipbench.bench.overhead import random_images
from clipbench.cli.compose import CONFIG_PATH
from clipbench.config import schema
from clipbench.training.batches import Batches
from clipbench.training.setup import Setup, build
from clipbench.training.trainer import Trainer
from tests.composed import composed

METHODS = sorted(path.stem for path in (Path(CONFIG_PATH) / "method").glob("*.yaml"))
FAKE = "newton_schulz"  # what `auto` picks on an accelerator
SMALL = ["dataset.samples=64", "dataset.validation=16", "dataset.test=16", "batch_size=4", "device=cpu", "steps=4"]


def setup(*overrides: str, data: Any = None, backend: str | None = None) -> Setup:
    config = composed(*overrides)
    if backend is not None:
        set_backend(config["method"], backend)
    return build(config, schema.check(config), data)


def set_backend(node: Any, backend: str) -> None:
    """Let every spectral rule of a method use one backend, wherever it acts."""
    for child in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        set_backend(child, backend)
    if isinstance(node, dict) and "SpectralClip" in str(node.get("_target_")):
        node["backend"] = backend


def test_every_method_file_is_found() -> None:
    assert {"sgd", "norm_clip", "value_clip", "ps_clip", "ps_clip_constant", "micro_batch_clip"} <= set(METHODS)


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw", "muon"])
@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains_with_every_optimizer(method: str, optimizer: str) -> None:
    made = setup(f"method={method}", f"optimizer={optimizer}", "accumulation=2", *SMALL)
    trainer = Trainer(made)
    before = copy.deepcopy(made.model.state_dict())
    figures = [trainer.step(step) for step in range(3)]
    assert all(torch.isfinite(figures[-1][name]) for name in ("loss", "clipped_fraction"))
    assert any(not torch.equal(before[name], value) for name, value in made.model.state_dict().items())
    assert all(p.grad is None for p in made.model.parameters())


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("task", ["mlp", "alexnet", "transformer"])
def test_a_step_never_waits_for_the_device(method: str, task: str) -> None:
    """Under FakeTensorMode `.item()`, `bool()`, `nonzero` and masked indexing raise, as nothing has a value.

    Spectral methods run with the backend that `auto` picks on an accelerator: on a CPU, where nothing is waited for
    anyway, it reads values to save work.
    """
    with FakeTensorMode(allow_non_fake_inputs=True):
        made = fake_setup(method, task)
        trainer = Trainer(made)
        made.model.train()
        for step in range(2):
            trainer.step(step)


def fake_setup(method: str, task: str) -> Setup:
    # Accumulation does not see the layers: the MLP shows it for all three.
    common = [f"method={method}", f"accumulation={2 if task == 'mlp' else 1}", "batch_size=4", "device=cpu", "steps=4"]
    if task == "alexnet":
        return setup("dataset=cifar100", *common, data=random_images(torch.device("cpu"), 32), backend=FAKE)
    if task == "transformer":
        small = ["model.layers=1", "model.heads=2", "model.width=16", "dataset.context=8"]
        return setup("dataset=shakespeare_char", *small, *common, data=Windows(), backend=FAKE)
    return setup(*common, *SMALL, backend=FAKE)


class Windows:
    """Random token windows in place of the text's file."""

    sizes = {"train": 32, "validation": 4, "test": 4}  # noqa: RUF012 - as the protocol has it

    def batch(self, indices: torch.Tensor, generator: torch.Generator) -> Any:
        from clipbench.data import Batch

        tokens = torch.randint(65, (len(indices), 9), generator=generator)
        return Batch(tokens[:, :-1], tokens[:, 1:])


def test_the_check_for_synchronisation_can_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    from clipbench.clipping import NoClip

    original = NoClip.__call__

    def reads(self: NoClip, named: Any) -> Any:
        stats = original(self, named)
        stats.clipped_fraction.item()
        return stats

    monkeypatch.setattr(NoClip, "__call__", reads)
    with FakeTensorMode(allow_non_fake_inputs=True), pytest.raises(DataDependentOutputException):
        Trainer(fake_setup("sgd", "mlp")).step(0)


@pytest.mark.parametrize("other", ["norm_clip", "ps_clip"])
def test_methods_with_one_seed_share_weights_and_batches(other: str) -> None:
    one, two = setup("method=sgd", *SMALL), setup(f"method={other}", "optimizer=adam", *SMALL)
    assert all(torch.equal(a, b) for a, b in zip(one.model.parameters(), two.model.parameters(), strict=True))
    trainer = Trainer(two)
    for step in range(6):
        first = list(Trainer(one).batches.step(step))
        trainer.step(step)  # draws that the method makes must not reach the next batch
        second = list(trainer.batches.step(step))
        assert all(torch.equal(a.inputs, b.inputs) for a, b in zip(first, second, strict=True))
    different = setup("method=sgd", "seed=1", *SMALL)
    assert not torch.equal(next(one.model.parameters()), next(different.model.parameters()))


def test_an_epoch_sees_every_sample_once_and_the_next_in_another_order() -> None:
    made = setup(*SMALL)
    batches = Batches(made.data, 0, 4, 1, made.device)
    epochs = [torch.cat([batches.indices(e * 16 + i) for i in range(16)]) for e in range(2)]
    assert all(torch.equal(epoch.sort().values, torch.arange(64)) for epoch in epochs)
    assert not torch.equal(epochs[0], epochs[1])
    assert torch.equal(batches.indices(3), epochs[0][12:16]), "a batch is a function of (seed, step) alone"


def test_tuning_never_touches_the_test_split() -> None:
    trainer = Trainer(setup("role=tune", "trial=0", "eval_every=2", *SMALL))
    assert sum(len(rows) for rows in trainer.run()) == len(trainer.rows)
    assert {row["split"] for row in trainer.rows} == {"train", "validation"}


def test_the_schedule_and_accumulation_reach_the_optimizer() -> None:
    made = setup("schedule=cosine", "optimizer.lr=0.1", "accumulation=3", *SMALL)
    trainer = Trainer(made)
    trainer.step(2)
    assert made.optimizer.param_groups[0]["lr"] == pytest.approx(0.05)
    assert [len(batch.targets) for batch in trainer.batches.step(0)] == [4, 4, 4]


def test_a_group_reaches_its_schedules_end_after_its_span() -> None:
    made = setup("schedule=linear", "optimizer.lr=0.1", *SMALL, "steps=8")
    made.optimizer.add_param_group({"params": [torch.nn.Parameter(torch.ones(1))], "lr": 0.2, "span": 0.5})
    trainer = Trainer(made)
    rates = []
    for step in range(8):
        trainer.step(step)
        rates.append([group["lr"] for group in made.optimizer.param_groups])
    assert [first for first, _ in rates] == pytest.approx([0.1 * (1 - step / 8) for step in range(8)])
    assert [second for _, second in rates] == pytest.approx([0.2, 0.15, 0.1, 0.05, 0.0, 0.0, 0.0, 0.0])


def test_data_by_epoch_are_told_of_every_epoch_also_by_a_run_that_goes_on() -> None:
    class ByEpoch:
        sizes = {"train": 8, "validation": 1, "test": 1}  # noqa: RUF012 - as the protocol has it

        def __init__(self) -> None:
            self.told: list[tuple[int, int]] = []

        def begin_epoch(self, epoch: int, generator: torch.Generator) -> None:
            self.told.append((epoch, int(torch.randint(10**6, (), generator=generator))))

        def batch(self, indices: torch.Tensor, generator: torch.Generator) -> Any: ...

        def evaluation(self, split: str, batch_size: int) -> Any: ...

    def told(steps: range, seed: int = 0) -> list[tuple[int, int]]:
        data = ByEpoch()
        batches = Batches(data, seed, 4, 1, torch.device("cpu"))
        for step in steps:
            batches.indices(step)
        return data.told

    whole = told(range(6))
    assert [epoch for epoch, _ in whole] == [0, 1, 2]
    assert len({draw for _, draw in whole}) == 1, "the draws are the run's, not the epoch's"
    assert told(range(3, 6)) == whole[1:]
    assert told(range(1), seed=1)[0][1] != whole[0][1]


def test_data_can_be_drawn_from_the_runs_seed() -> None:
    def first(*words: str) -> torch.Tensor:
        return next(setup(*SMALL, *words).data.evaluation("train", 64)).inputs

    same = [first(f"seed={seed}") for seed in (0, 1)]
    own = [first(f"seed={seed}", "data.split_seed=null") for seed in (0, 1)]
    assert torch.equal(*same)
    assert not torch.equal(*own)
    assert torch.equal(own[1], first("seed=0", "data.split_seed=1"))


def test_a_model_that_is_prepared_sees_the_data() -> None:
    data = random_images(torch.device("cpu"), 32)
    made = setup("dataset=cifar10", "model=airbench", "optimizer=airbench", "batch_size=4", "steps=4", data=data)
    assert float(made.model.whitening.weight[:12].add(made.model.whitening.weight[12:]).abs().max()) == 0.0


def test_bf16_and_compile_train() -> None:
    plain = Trainer(setup(*SMALL)).step(0)
    low = Trainer(setup("precision=bf16", *SMALL)).step(0)
    assert float(low["loss"]) == pytest.approx(float(plain["loss"]), rel=0.05)
    assert float(low["loss"]) != float(plain["loss"])


@pytest.mark.slow
@pytest.mark.parametrize("method", ["sgd", "micro_batch_clip"])
def test_a_compiled_model_takes_the_same_step(method: str) -> None:
    plain = Trainer(setup(f"method={method}", *SMALL)).step(0)
    compiled = Trainer(setup(f"method={method}", "compile=true", *SMALL)).step(0)
    for name, value in plain.items():
        assert float(compiled[name]) == pytest.approx(float(value), rel=1e-4), name
