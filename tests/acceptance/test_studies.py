"""Studies as commands: a record, found again; killed at random moments; swept; and without the groups of a network."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import yaml
from hydra.errors import HydraException

from clipbench.cli.command import condense
from clipbench.cli.compose import compose
from clipbench.config import schema
from clipbench.errors import ConfigError
from clipbench.runs.execute import execute
from tests.runs.helpers import info, values

CONF = Path(__file__).parents[2] / "conf"
STUDIES = ("estimator_error", "rates", "rates_matrix", "spectrum", "trace_regression")
SIZES = [
    f"{path.parent.name}/{path.stem}"
    for name in STUDIES
    for path in sorted((CONF / "experiment" / name).glob("[a-z]*.yaml"))
]


def run(results: Path, *words: str) -> list[str]:
    command = [sys.executable, "-m", "clipbench.run", *words, f"paths.results={results}", "device=cpu", "threads=1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.parametrize(
    "name", [n if n == "trace_regression" else pytest.param(n, marks=pytest.mark.slow) for n in STUDIES]
)
def test_a_study_leaves_a_record_and_is_found_when_repeated(name, tmp_path):
    folder = Path(run(tmp_path, f"experiment={name}/smoke")[-1])
    assert {path.name for path in folder.iterdir()} >= {"config.yaml", "run.json", "metrics.parquet"}
    assert not (folder / "checkpoint.pt").exists()
    found = info(folder)
    assert (found["status"], found["method"], found["error"]) == ("ok", name, None)
    assert found["steps_done"] == found["steps"] > 1
    assert found["final"], "no figure to print at the end of the run"
    table = pd.read_parquet(folder / "metrics.parquet")
    assert set(table["split"]) == {"study"}
    assert table["value"].notna().all()
    assert not table.duplicated(["step", "metric"]).any()
    config = yaml.safe_load((folder / "config.yaml").read_text())
    trains = name == "spectrum"
    assert ("model" in config) == ("batch_size" in config) == trains
    assert found["precision"] == ("fp32" if trains else "fp64")
    again = run(tmp_path, f"experiment={name}/smoke")
    assert "already done" in "\n".join(again)
    assert again[-1] == str(folder)


def test_killed_at_random_moments_ends_bit_identical(tmp_path):
    words = ["experiment=trace_regression/smoke", "study.steps=4000", "study.block=100", "study.points=60"]
    command = [sys.executable, "-m", "tests.runs.killer", str(tmp_path), "10", "1", "0.3", *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=250, check=False)
    assert done.returncode == 0, done.stderr
    ended = json.loads(done.stdout.splitlines()[-1])
    assert (ended["reference"], ended["killed"]) == (0, 0)
    assert ended["kills"] >= 5, "the kills missed the run"
    reference, killed = (
        next((tmp_path / which).glob("runs/*/*/*/run.json")).parent for which in ("reference", "killed")
    )
    assert values(killed) == values(reference)


@pytest.mark.slow
def test_a_sweep_leaves_one_record_a_cell(tmp_path):
    lines = run(tmp_path, "-m", "experiment=estimator_error/smoke")
    folders = list(tmp_path.glob("runs/estimator_error/smoke/*/run.json"))
    assert len(folders) == 2
    assert any("sweep ended: 2" in line for line in lines)


@pytest.mark.parametrize("size", SIZES)
def test_every_size_composes_and_is_accepted(size):
    config = compose([f"experiment={size}"])
    schema.check(config)
    assert config["study"]["name"] == size.split("/")[0]


def test_what_a_training_depends_on_is_no_part_of_a_study():
    """Another method or batch size gives the same run."""
    from clipbench.runs.request import request

    plain, other = (
        request(compose(["experiment=rates/smoke", *words])) for words in ([], ["method=norm_clip", "batch_size=7"])
    )
    assert plain.run_id == other.run_id
    assert plain.run_id != request(compose(["experiment=rates/smoke", "study.seeds=40"])).run_id


@pytest.mark.parametrize(("words", "message"), [
    (["study.power=3.0"], "study.power must be in (1, 2), got 3.0"),
    (["study.seeds=hello"], "study.seeds must be a whole number, got hello"),
    (["+study.sceds=3"], "study.sceds is not an option"),
])  # fmt: skip
def test_bad_input_is_one_line(words, message, tmp_path):
    with pytest.raises((ConfigError, HydraException)) as raised:
        execute(compose([f"paths.results={tmp_path}", "experiment=rates/smoke", *words]))
    said = condense(raised.value)
    assert message in said
    assert len(said.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_bad_input_leaves_with_status_2(tmp_path):
    words = [f"paths.results={tmp_path}", "experiment=rates/smoke", "study.power=3.0"]
    command = [sys.executable, "-m", "clipbench.run", *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert (done.returncode, done.stderr) == (2, "clipbench: study.power must be in (1, 2), got 3.0\n")
    assert not list(tmp_path.iterdir())
