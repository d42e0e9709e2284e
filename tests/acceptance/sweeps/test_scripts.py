"""The cluster scripts: whole shell, and options that the launcher and the commands know."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from clipbench.cli.compose import compose_node

SCRIPTS = Path(__file__).parents[3] / "scripts" / "slurm"


@pytest.mark.parametrize("name", ["sweep.sh", "tune.sbatch"])
def test_the_shell_can_read_it_and_it_says_how_it_is_used(name: str) -> None:
    subprocess.run(["bash", "-n", SCRIPTS / name], check=True)
    done = subprocess.run(["bash", SCRIPTS / name], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert f"usage: {'sbatch ' * name.endswith('sbatch')}{name}" in done.stderr


def test_the_launcher_knows_its_options() -> None:
    text = (SCRIPTS / "sweep.sh").read_text()
    words = [word.strip('"').replace("$partition", "gpu") for word in re.findall(r'"?hydra[/.][^\s\\]+', text)]
    launcher = compose_node([*words, "hydra.mode=MULTIRUN"]).hydra.launcher
    assert len(words) == 8
    assert launcher._target_.endswith("SlurmLauncher")
    assert (launcher.partition, launcher.gpus_per_node, launcher.tasks_per_node) == ("gpu", 1, 1)


@pytest.mark.parametrize(
    ("storage", "expected"), [("", []), ("postgresql://me@db/tuning", ["storage=postgresql://me@db/tuning"])]
)
def test_a_worker_s_command_line(storage: str, expected: list[str], tmp_path: Path) -> None:
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    python = tmp_path / ".venv" / "bin" / "python"
    python.write_text('#!/bin/bash\nprintf "%s\\n" "$@"\n')
    python.chmod(0o755)
    done = subprocess.run(
        ["bash", SCRIPTS / "tune.sbatch", "some/paper", "trials=3"],
        cwd=tmp_path, env={"PATH": "/usr/bin:/bin", "CLIPBENCH_STORAGE": storage},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    words = ["-m", "clipbench.tune", "experiment=some/paper", "device=cuda", *expected, "trials=3"]
    assert done.stdout.splitlines() == words
