"""Bad input: one line that names the option, the value and what is allowed; exit status 2; nothing written."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from clipbench.cli.command import condense
from clipbench.cli.compose import compose
from clipbench.runs.execute import execute

# (overrides, what the line must contain)
TABLE = [
    (["optimizer.lrr=0.1"], ["optimizer.lrr", "is not an option"]),
    (["sead=1"], ["sead is not an option", "did you mean seed?"]),
    (["method=ps_clop"], ["method must be one of", "ps_clip", "got ps_clop"]),
    (["experiment=nope/cpu"], ["experiment", "nope"]),
    (["optimiser=sgd"], ["optimiser is not an option", "did you mean optimizer?"]),
    (["optimizer=null"], ["a group must be given a choice, got null"]),
    (["optimizer.lr"], ["Error parsing override 'optimizer.lr'"]),
    (["~seed"], ["seed must be given"]),
    (["+method.bla=1"], ["method.bla is not an option"]),
    (["+foo=1"], ["foo is not an option"]),
    (["optimizer.lr=fast"], ["optimizer.lr must be a number, got fast"]),
    (["optimizer.lr=true"], ["optimizer.lr must be a number, got True"]),
    (["optimizer.lr=-1"], ["optimizer.lr must be", "> 0", "got -1"]),
    (["optimizer.lr=0"], ["optimizer.lr must be", "> 0", "got 0"]),
    (["optimizer.lr=inf"], ["optimizer.lr must be", "finite", "got inf"]),
    (["optimizer.lr=nan"], ["optimizer.lr must be", "finite", "got nan"]),
    (["optimizer.momentum=1"], ["optimizer.momentum must be in [0, 1)", "got 1"]),
    (["optimizer.momentum=-0.1"], ["optimizer.momentum must be in [0, 1)", "got -0.1"]),
    (["optimizer.weight_decay=-1"], ["optimizer.weight_decay must be", ">= 0", "got -1"]),
    (["method=norm_clip", "method.clipper.threshold=-1"], ["method.clipper.threshold must be > 0, got -1"]),
    (["method=norm_clip", "method.clipper.threshold=0"], ["method.clipper.threshold must be > 0, got 0"]),
    (["method=norm_clip", "method.clipper.threshold=inf"], ["method.clipper.threshold", "finite", "got inf"]),
    (["method=norm_clip", "method.clipper.threshold=nan"], ["method.clipper.threshold", "finite", "got nan"]),
    (["method=norm_clip", "method.clipper.threshold=big"], ["method.clipper.threshold must be", "got big"]),
    (["method=value_clip", "method.clipper.threshold=0"], ["method.clipper.threshold must be > 0, got 0"]),
    (["method=ps_clip", "method.estimator.threshold.alpha=0"], ["method.estimator.threshold.alpha must be > 0, got 0"]),
    (["method=ps_clip", "method.estimator.threshold.alpha=-1"], ["threshold.alpha must be > 0, got -1"]),
    (["method=ps_clip", "method.estimator.threshold.alpha=inf"], ["threshold.alpha", "finite", "got inf"]),
    (["method=ps_clip", "method.estimator.threshold.beta=0"], ["threshold.beta must be > 0, got 0"]),
    (["method=ps_clip", "method.estimator.threshold.beta=nan"], ["threshold.beta must be", "got nan"]),
    (["method=ps_clip", "+method.estimator.threshold.alfa=1"], ["threshold.alfa is not an option", "alpha"]),
    (["method=ps_clip_constant", "method.estimator.threshold=0"], ["method.estimator.threshold must be > 0, got 0"]),
    (["method.estimator._target_=clipbench.nothing"], ["method.estimator._target_ must be", "clipbench.nothing"]),
    (["seed=-1"], ["seed must be >= 0, got -1"]),
    (["seed=1.5"], ["seed must be", "integer", "got 1.5"]),
    (["seed=null"], ["seed must be", "integer", "got null"]),
    (["steps=0"], ["steps must be >= 1, got 0"]),
    (["steps=null"], ["steps must be a number >= 1 where epochs is null, got null"]),
    (["steps=ten"], ["steps must be", "integer", "got ten"]),
    (["steps=null", "epochs=0"], ["epochs must be > 0, got 0"]),
    (["steps=null", "epochs=inf"], ["epochs must be a finite number, got inf"]),
    (["batch_size=0"], ["batch_size must be >= 1, got 0"]),
    (["accumulation=0"], ["accumulation must be >= 1, got 0"]),
    (["eval_every=0"], ["eval_every must be a count of steps", "got 0"]),
    (["eval_every=-3s"], ["eval_every must be a count of steps", "got -3s"]),
    (["log_every=0"], ["log_every must be >= 1, got 0"]),
    (["checkpoint_every=-1"], ["checkpoint_every must be >= 1, got -1"]),
    (["eval_batch_size=0"], ["eval_batch_size must be >= 1, got 0"]),
    (["batch_size=100000"], ["batch_size must be <=", "got 100000"]),
    (["batch_size=4000", "accumulation=9"], ["batch_size must be <=", "got 4000"]),
    (["precision=fp8"], ["precision must be one of", "bf16", "got fp8"]),
    (["device=tpu"], ["device must be auto, cpu, cuda or cuda:N", "got tpu"]),
    (["device=cuda:99"], ["device must be there", "got cuda:99"]),
    (["role=winner"], ["role must be one of", "got winner"]),
    (["stale=maybe"], ["stale must be one of", "got maybe"]),
    (["model=alexnet"], ["alexnet", "heavy_tailed"]),
    (["model=transformer"], ["transformer", "heavy_tailed"]),
    (["dataset=cifar100", "model=mlp", "data.root=/nonexistent", "data.download=false"], ["cifar100"]),
    (["model.widths=[0]"], ["model.widths must be", "got"]),
    (["data.split_seed=-1"], ["data.split_seed must be >= 0, got -1"]),
    (["paths.results="], ["paths.results must not be empty"]),
    (["method=ps_clip", "compile=true"], ["compile must be false with PerSample", "got true"]),
    (["seed=1,2"], ["seed", "-m"]),
    (["lr=0.1"], ["lr is not an option (did you mean optimizer.lr?)"]),
    (["tuned=typo"], ["tuned must be auto or none, got typo"]),
    (["study=spectrum", "tuned=typo"], ["tuned must be auto or none, got typo"]),
    (["schedule=linear", "schedule.warmup=2001"], ["schedule.warmup must be <= 2000, the steps of the run, got 2001"]),
    (["schedule=cosine", "schedule.warmup=9", "steps=8"], ["schedule.warmup must be <= 8", "got 9"]),
    (["schedule.warmup=99", "steps=null", "epochs=0.1"], ["schedule.warmup must be <=", "got 99"]),
]


def line_for(overrides: list[str]) -> str:
    """What the command line would print for these overrides."""
    try:
        execute(compose(overrides))
    except Exception as error:
        return condense(error) or f"an unexpected {type(error).__name__}: {error}"
    raise AssertionError("the input was accepted")


@pytest.mark.parametrize(("overrides", "parts"), TABLE, ids=[" ".join(row[0]) for row in TABLE])
def test_one_line_names_option_and_value(
    overrides: list[str], parts: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    line = line_for(overrides)
    for part in parts:
        assert part in line
    assert len(line.splitlines()) <= (3 if "dataset=cifar100" in overrides else 1)
    assert len(line) < (600 if "experiment=nope/cpu" in overrides else 400)  # that one names all experiments
    assert not list(tmp_path.iterdir()), "something was written"


def test_unwritable_results_folder(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    line = line_for([f"paths.results={blocked}", "steps=1"])
    assert line.startswith("paths.results must be a writable folder, got")


@pytest.mark.parametrize(("overrides", "status"), [(["optimizer.lr=-1"], 2), (["method=nope"], 2), (["--nonsense"], 2)])
def test_exit_status_at_the_command_line(overrides: list[str], status: int, tmp_path: Path) -> None:
    environment = {key: value for key, value in os.environ.items() if key != "HYDRA_FULL_ERROR"}
    done = subprocess.run(
        [sys.executable, "-m", "clipbench.run", *overrides],
        cwd=tmp_path, capture_output=True, text=True, env=environment, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == status
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())
