"""`python -m clipbench.suggest` of an experiment."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import nn

import clipbench.suggest
from clipbench.errors import ConfigError


@pytest.mark.slow
def test_an_experiment() -> None:
    words = [sys.executable, "-m", "clipbench.suggest", "experiment=heavy_tailed_mlp/smoke", "batches=4", "share=0.25"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line.split("  ")[0] for line in lines] == ["norm", "sample", "whole gradient", "layer", "layer, spectral"]
    assert "PowerThreshold(alpha=" in lines[1]
    assert lines[1].endswith(" %")


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("batches=some", "batches must be a whole number, got some"),
        ("share=x", "share must be a number, got x"),
        ("batchs=3", r"batchs is not an option .did you mean batches\?."),
        ("experiment=estimator_error/smoke", "experiment must be one that trains a network, got estimator_error/smoke"),
    ],
)
def test_bad_input(word: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        clipbench.suggest.main([word])


def test_the_function_keeps_its_name() -> None:
    """The command's module has the name of the function, and can be called like it."""
    found = clipbench.suggest(nn.Linear(2, 1), [torch.ones(3, 2)], lambda model, x: model(x)[:, 0])
    assert found.norms.samples.tolist() == pytest.approx([3**0.5] * 3)
