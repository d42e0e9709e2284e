"""Folders of configs and installed packages from outside, in every command, and what their files may not do."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from clipbench.cli.outside import folders, taken
from clipbench.errors import ConfigError

RUN = ["clipbench.run", "steps=2", "eval_every=2", "dataset.samples=200", "device=cpu"]
RULE = "from clipbench.clipping import NormClip\nclass MyClip(NormClip):\n    pass\n"
METHOD = """\
name: {name}
estimator: {{_target_: clipbench.estimators.Batch}}
clipper: {{_target_: {target}, threshold: 1.0}}
"""


def python(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])}
    return subprocess.run(
        [sys.executable, "-m", *words], cwd=folder, env=environment, capture_output=True, text=True, timeout=280
    )


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    """A folder with a module of one's own, a folder of configs, and an installed package of another."""
    (tmp_path / "my_rules.py").write_text(RULE)
    (tmp_path / "mine" / "method").mkdir(parents=True)
    (tmp_path / "mine" / "method" / "my_clip.yaml").write_text(METHOD.format(name="my_clip", target="my_rules.MyClip"))
    return tmp_path


@pytest.mark.slow
def test_a_file_s_own_class_needs_allow_in_a_run_and_in_a_sweep(mine: Path) -> None:
    refused = python(mine, *RUN, "--config-dir", "mine", "method=my_clip")
    assert refused.returncode == 2
    assert refused.stderr.startswith("clipbench: method.clipper._target_ must be of clipbench, of a package")
    assert len(refused.stderr.splitlines()) == 1
    assert not (mine / "results").exists()
    done = python(mine, *RUN, "--config-dir=mine", "--allow", "my_rules", "method=my_clip")
    assert done.returncode == 0, done.stderr
    swept = python(mine, *RUN, "-m", "--config-dir=mine", "--allow=my_rules", "method=my_clip,sgd")
    assert swept.returncode == 0, swept.stderr
    assert "sweep: 2 runs, 1 done, 1 to do" in swept.stdout, "the plan knows methods of --config-dir"
    assert "sweep ended: 2 ok (1 skipped, done before)" in swept.stdout


@pytest.mark.slow
def test_an_installed_package_brings_its_own(tmp_path: Path) -> None:
    package = tmp_path / "their_package"
    (package / "conf" / "method").mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "rules.py").write_text(RULE)
    text = METHOD.format(name="theirs", target="their_package.rules.MyClip")
    (package / "conf" / "method" / "theirs.yaml").write_text(text)
    known = tmp_path / "their_package-1.0.dist-info"
    known.mkdir()
    (known / "METADATA").write_text("Metadata-Version: 2.1\nName: their_package\nVersion: 1.0\n")
    (known / "entry_points.txt").write_text(
        "[clipbench.methods]\nfolder = their_package.conf\none_class = their_package.rules:MyClip\n"
    )
    swept = python(tmp_path, *RUN, "-m", "method=theirs", "seed=0,1")
    assert "sweep ended: 2 ok" in swept.stdout, swept.stderr
    single = python(tmp_path, *RUN, "method=one_class", "+method.clipper.threshold=2.0")
    assert single.returncode == 0, single.stderr
    assert single.stdout.startswith("ok: one_class seed 0")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("where", "content"),
    [
        ("method", "hydra: {callbacks: {x: {_target_: subprocess.Popen, args: [touch, executed]}}}"),
        ("experiment", "hydra: {launcher: {_target_: subprocess.Popen}}"),
        ("experiment", "hydra: {job_logging: {handlers: {x: {'()': subprocess.Popen, args: [touch, executed]}}}}"),
        ("experiment", "hydra: {job: {env_set: {CLIPBENCH_ALLOW: subprocess}}}"),
    ],
)
def test_a_file_cannot_reach_code_through_hydra(tmp_path: Path, where: str, content: str) -> None:
    (tmp_path / "theirs" / where).mkdir(parents=True)
    text = content if where == "experiment" else content + "\nname: x\n"
    (tmp_path / "theirs" / where / "x.yaml").write_text(f"# @package _global_\n{text}\n")
    done = python(tmp_path, *RUN, "--config-dir", "theirs", f"{where}=x")
    assert done.returncode == 2, done.stdout + done.stderr
    assert "may be given on the command line only" in done.stderr
    assert not (tmp_path / "executed").exists()


def test_flags_are_taken_out_of_the_words(tmp_path: Path) -> None:
    assert taken(["a=1", "--config-dir", str(tmp_path), "--allow=x,y.z", "b=2"]) == ["a=1", "b=2"]
    assert tmp_path in folders()
    assert os.environ["CLIPBENCH_ALLOW"].split(",")[-2:] == ["x", "y.z"]


@pytest.mark.parametrize("word", ["--config-name=x", "-cp", "hydra.searchpath=[file:///x]"])
def test_what_would_replace_our_config_is_refused(word: str) -> None:
    with pytest.raises(ConfigError, match="is not an option"):
        taken([word])
