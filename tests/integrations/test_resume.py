"""Hugging Face's Trainer stopped and resumed: it ends as one that was never stopped."""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments

from clipbench import EmaThreshold, NormClip, PerSampleClipper, SampleEma, ValueClip
from clipbench.integrations.huggingface import FILE, ClipCallback, PerSampleTrainerMixin
from clipbench.integrations.state import ClipperState

pytestmark = pytest.mark.slow
SIZES = {"vocab_size": 11, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}


class PerSampleTrainer(PerSampleTrainerMixin, Trainer):
    pass


def made(folder: Path, per_sample: bool, steps: int = 4, resume_from: Path | None = None) -> tuple[Trainer, Any]:
    """A Trainer with dropout, accumulation and momentum of Adam, and its clipper."""
    torch.manual_seed(0)
    model = BertForSequenceClassification(BertConfig(**SIZES))
    data = [{"input_ids": torch.randint(11, (5,)), "labels": int(torch.randint(2, ()))} for _ in range(16)]
    args = TrainingArguments(
        str(folder), max_steps=steps, per_device_train_batch_size=2, gradient_accumulation_steps=2, max_grad_norm=0,
        learning_rate=0.01, lr_scheduler_type="constant", use_cpu=True, report_to="none", disable_tqdm=True,
        save_steps=2, logging_steps=100,
    )  # fmt: skip
    if per_sample:
        clipper: Any = PerSampleClipper(model, SampleEma(0.5))
        return PerSampleTrainer(model, args, train_dataset=data, clipper=clipper), clipper
    clipper = NormClip(EmaThreshold(0.5))
    return Trainer(model, args, train_dataset=data, callbacks=[ClipCallback(clipper, resume_from)]), clipper


def outcome(trainer: Trainer, clipper: Any) -> tuple[dict[str, Tensor], str]:
    """Weights, and what the clipper remembers."""
    weights = {name: value.detach().clone() for name, value in trainer.model.named_parameters()}
    return weights, str(ClipperState(clipper).state_dict())


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("per_sample", [False, True])
def test_a_resumed_trainer_ends_as_an_undisturbed_one(tmp_path: Path, per_sample: bool) -> None:
    trainer, clipper = made(tmp_path / "whole", per_sample)
    trainer.train()
    weights, memory = outcome(trainer, clipper)
    first, half = made(tmp_path / "half", per_sample, steps=2)
    first.train()
    assert outcome(first, half)[1] != memory
    again, fresh = made(tmp_path / "half", per_sample)
    again.train(resume_from_checkpoint=True)
    assert again.state.global_step == 4
    resumed, remembered = outcome(again, fresh)
    assert same(resumed, weights)
    assert remembered == memory

    (tmp_path / "half" / "checkpoint-2" / FILE).unlink()
    forgetful, fresh = made(tmp_path / "half", per_sample)
    with pytest.warns(
        UserWarning, match=r"goes on from step 2, but there is no .*clipper\.pt: the clipper starts afresh"
    ):
        forgetful.train(resume_from_checkpoint=str(tmp_path / "half" / "checkpoint-2"))
    lost, remembered = outcome(forgetful, fresh)
    assert remembered != memory
    assert not same(lost, weights)  # so the file is what makes it whole


@pytest.mark.parametrize("per_sample", [False, True])
def test_a_checkpoint_that_was_moved(tmp_path: Path, per_sample: bool) -> None:
    """The output folder has another checkpoint of the same step, which is not the one that was named."""
    trainer, clipper = made(tmp_path / "whole", per_sample)
    trainer.train()
    weights, memory = outcome(trainer, clipper)
    moved, output = tmp_path / "moved", tmp_path / "new"
    shutil.move(tmp_path / "whole" / "checkpoint-2", moved)
    (output / "checkpoint-2").mkdir(parents=True)
    shutil.copy(tmp_path / "whole" / "checkpoint-4" / FILE, output / "checkpoint-2")
    again, fresh = made(output, per_sample, resume_from=moved)
    again.train(resume_from_checkpoint=str(moved))
    resumed, remembered = outcome(again, fresh)
    assert same(resumed, weights)
    assert remembered == memory


def test_a_checkpoint_without_the_clipper_is_refused_where_it_was_named(tmp_path: Path) -> None:
    trainer, _ = made(tmp_path, False, steps=2)
    trainer.train()
    moved = tmp_path / "moved"
    shutil.copytree(tmp_path / "checkpoint-2", moved)
    (moved / FILE).unlink()
    again, _ = made(tmp_path, False, resume_from=moved)
    with pytest.raises(ValueError, match=r"resume_from must be a checkpoint with clipper\.pt, got .*moved"):
        again.train(resume_from_checkpoint=str(moved))


def test_a_rule_without_memory_has_nothing_to_miss(tmp_path: Path) -> None:
    callback = ClipCallback(ValueClip(1.0))
    args = TrainingArguments(str(tmp_path), use_cpu=True, report_to="none")
    state = type("State", (), {"global_step": 3})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        callback.on_train_begin(args, state, None)
