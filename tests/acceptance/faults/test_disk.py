"""A disk that is full (RLIMIT_FSIZE) and a folder that cannot be written: one clear line, earlier records whole."""

from __future__ import annotations

import ctypes
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.runs.helpers import TINY, info, values
from tests.tuning.helpers import arguments, contents, records

SMALL = [*TINY, "device=cpu", "threads=1"]
LARGE = "model.widths=[200,200]"  # a checkpoint of about 400 kB
TUNING = ["trials=2", "methods=sgd,norm_clip", "final_seeds=0", "model.widths=[400,400]"]  # about 1.3 MB


def limited(size: int | None, module: str, words: list[str]) -> subprocess.CompletedProcess[str]:
    """A command that cannot write files larger than `size` bytes, as on a disk with so much left."""

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))  # type: ignore[arg-type]

    return subprocess.run(
        [sys.executable, "-m", module, *words], capture_output=True, text=True, timeout=120, check=False,
        preexec_fn=limit if size else None,
    )  # fmt: skip


def snapshot(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != ".lock"}


@pytest.mark.slow
@pytest.mark.parametrize(("size", "file"), [(100_000, "checkpoint.pt"), (600, "config.yaml")])
def test_a_run_on_a_full_disk(size: int, file: str, tmp_path: Path) -> None:
    words = [*SMALL, f"paths.results={tmp_path}/results"]
    assert limited(None, "clipbench.run", [*words, "seed=1"]).returncode == 0
    earlier = snapshot(tmp_path)
    full = limited(size, "clipbench.run", [*words, LARGE])
    assert full.returncode == 1
    (line,) = [line for line in full.stderr.splitlines() if not line.startswith("step ")]
    assert line.startswith("clipbench: cannot write ")
    assert f"{file}: File too large; what was there before is untouched" in line
    assert {path: path.read_bytes() for path in earlier} == earlier
    assert not list(tmp_path.rglob("*.part"))
    again = limited(None, "clipbench.run", [*words, LARGE])
    assert again.returncode == 0, again.stderr
    folder = Path(again.stdout.splitlines()[-1])
    assert info(folder)["status"] == "ok"
    undisturbed = limited(None, "clipbench.run", [*SMALL, LARGE, f"paths.results={tmp_path}/other"])
    assert values(folder) == values(Path(undisturbed.stdout.splitlines()[-1]))


@pytest.mark.slow
def test_a_tuning_on_a_full_disk_goes_on_when_there_is_room(tmp_path: Path) -> None:
    folder = tmp_path / "tuning"
    full = limited(1_000_000, "clipbench.tune", arguments(folder, *TUNING))
    assert full.returncode == 1
    assert "checkpoint.pt: File too large" in full.stderr
    assert len(full.stderr.splitlines()) == 1
    again = limited(None, "clipbench.tune", arguments(folder, *TUNING))
    assert again.returncode == 0, again.stderr
    assert "failed" not in again.stdout, "a full disk is no result of a trial"
    assert limited(None, "clipbench.tune", arguments(tmp_path / "other", *TUNING)).returncode == 0
    assert contents(folder) == contents(tmp_path / "other")


@pytest.fixture
def read_only() -> Iterator[Path]:
    """A folder that the commands below may read and not write."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o555)
    yield folder
    folder.chmod(0o755)
    shutil.rmtree(folder)


def as_anybody() -> None:
    """For root a folder's mode is no hindrance: drop CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH, which make it so."""
    if os.getuid() == 0:
        for capability in (1, 2):
            if ctypes.CDLL(None).prctl(24, capability, 0, 0, 0) != 0:  # PR_CAPBSET_DROP
                raise OSError("the capability could not be dropped")


@pytest.mark.slow
@pytest.mark.parametrize("command", ["run", "tune", "calibrate"])
def test_a_read_only_folder_is_named(command: str, read_only: Path) -> None:
    words = [*SMALL, f"paths.results={read_only}/results"]
    if command != "run":
        words += ["experiment=heavy_tailed_mlp/smoke", "methods=sgd"]
    done = subprocess.run(
        [sys.executable, "-m", f"clipbench.{command}", *words],
        capture_output=True, text=True, timeout=120, check=False, preexec_fn=as_anybody,
    )  # fmt: skip
    assert done.returncode == 2
    assert "paths.results must be a writable folder, got" in done.stderr
    assert str(read_only) in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not list(read_only.iterdir())


@pytest.mark.slow
def test_a_sweep_into_a_read_only_folder_ends_with_its_report(read_only: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "clipbench.run", "-m", "seed=0,1", *SMALL, f"paths.results={read_only}/results",
         "hydra.sweep.dir=/tmp", "hydra.sweep.subdir=."],
        capture_output=True, text=True, timeout=120, check=False, preexec_fn=as_anybody,
    )  # fmt: skip
    assert done.returncode == 2
    assert "sweep ended: 2 not begun" in done.stdout
    assert "paths.results must be a writable folder" in done.stderr
    assert not records(read_only)
