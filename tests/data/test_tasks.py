"""Losses and metrics against formulas written out by hand, sample by sample, in float64."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from clipbench.data import Batch, Classification, NextToken, Regression
from clipbench.data import tasks as tasks_module

EMPTY = torch.empty(0)


def smoothed(logits: Tensor, target: int, smoothing: float) -> float:
    """−Σ_c q_c log p_c with q = (1 − s)·onehot + s/C, one sample, plain Python."""
    values = logits.tolist()
    top = max(values)
    log_sum = top + math.log(sum(math.exp(v - top) for v in values))
    share = smoothing / len(values)
    return -sum(((1 - smoothing) * (c == target) + share) * (v - log_sum) for c, v in enumerate(values))


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_classification(smoothing: float) -> None:
    logits, targets = torch.randn(5, 7, dtype=torch.float64), torch.tensor([0, 3, 6, 2, 2])
    batch = Batch(EMPTY, targets)
    expected = [smoothed(row, int(t), smoothing) for row, t in zip(logits, targets, strict=True)]
    losses = Classification(smoothing).losses(logits, batch)
    torch.testing.assert_close(losses, torch.tensor(expected, dtype=torch.float64))
    plain = [smoothed(row, int(t), 0.0) for row, t in zip(logits, targets, strict=True)]
    metrics = Classification(smoothing).metrics(logits, batch)
    torch.testing.assert_close(metrics["loss"], torch.tensor(plain, dtype=torch.float64))
    right = [float(max(range(7), key=row.tolist().__getitem__) == t) for row, t in zip(logits, targets, strict=True)]
    assert metrics["accuracy"].tolist() == right


def test_regression_is_the_mean_over_outputs_without_one_half() -> None:
    batch = Batch(EMPTY, torch.tensor([[1.0, 0.0], [2.0, 2.0]]))
    outputs = torch.tensor([[3.0, 1.0], [2.0, -4.0]])
    assert Regression().losses(outputs, batch).tolist() == [2.5, 18.0]
    assert Regression().metrics(outputs, batch)["loss"].tolist() == [2.5, 18.0]


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_text_loss_is_the_mean_over_a_sequences_tokens(smoothing: float) -> None:
    outputs, targets = torch.randn(3, 4, 6, dtype=torch.float64), torch.randint(6, (3, 4))
    rows = [sum(smoothed(outputs[k, t], int(targets[k, t]), smoothing) for t in range(4)) / 4 for k in range(3)]
    task = NextToken(smoothing)
    losses = task.losses(outputs, Batch(EMPTY, targets))
    torch.testing.assert_close(losses, torch.tensor(rows, dtype=torch.float64))
    accuracy = task.metrics(outputs, Batch(EMPTY, targets))["accuracy"]
    torch.testing.assert_close(accuracy, (outputs.argmax(2) == targets).double().mean(1))


def noisy_case() -> tuple[Tensor, Batch]:
    outputs = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    return outputs, Batch(EMPTY, torch.randn(4, 3, dtype=torch.float64), torch.randn(4, 3, dtype=torch.float64))


def test_output_noise_is_added_to_each_samples_output_gradient_and_to_no_metric() -> None:
    outputs, batch = noisy_case()
    assert batch.output_noise is not None
    clean = Batch(batch.inputs, batch.targets)
    (noisy,) = torch.autograd.grad(Regression().losses(outputs, batch).sum(), outputs)
    (plain,) = torch.autograd.grad(Regression().losses(outputs, clean).sum(), outputs)
    torch.testing.assert_close(noisy - plain, batch.output_noise)
    metric = Regression().metrics(outputs, batch)["loss"]
    torch.testing.assert_close(metric, Regression().metrics(outputs, clean)["loss"])


def test_the_noise_test_notices_missing_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks_module, "_with_noise", lambda losses, outputs, batch: losses)
    with pytest.raises(AssertionError):
        test_output_noise_is_added_to_each_samples_output_gradient_and_to_no_metric()


def test_half_precision_outputs_give_float32_losses() -> None:
    outputs, batch = torch.randn(2, 3).bfloat16(), Batch(EMPTY, torch.tensor([0, 1]))
    assert Classification().losses(outputs, batch).dtype == torch.float32


@pytest.mark.parametrize("task", [Classification, NextToken])
@pytest.mark.parametrize("smoothing", [-0.1, 1.0, math.nan])
def test_label_smoothing_is_checked(task: type, smoothing: float) -> None:
    with pytest.raises(ValueError, match=r"^label_smoothing must be in \[0, 1\), got"):
        task(smoothing)
