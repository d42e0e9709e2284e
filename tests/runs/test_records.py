"""Records: identity, skipping, damage, locks, full disks and read-only folders."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from clipbench.cli.compose import compose
from clipbench.errors import RecordError, RunLocked
from clipbench.runs import fingerprint as fingerprints
from clipbench.runs.execute import Outcome, execute
from clipbench.runs.files import atomic_write
from clipbench.runs.identity import run_id
from clipbench.runs.record import Record
from tests.runs.helpers import TINY, values


def run(results: Path, *overrides: str) -> Outcome:
    return execute(compose([*TINY, f"paths.results={results}", "device=cpu", *overrides]), say=lambda line: None)


def test_the_same_command_finds_its_finished_run(tmp_path: Path) -> None:
    first = run(tmp_path)
    before = (first.folder / "metrics.parquet").stat().st_mtime_ns
    second = run(tmp_path)
    assert not first.found
    assert second.found
    assert second.folder == first.folder
    assert second.info["final"] == first.info["final"]
    assert (first.folder / "metrics.parquet").stat().st_mtime_ns == before


@pytest.mark.parametrize("harmless", ["log_every=7", "checkpoint_every=3", "data.root=elsewhere", "log_layers=true",
                                      "stale=keep", "threads=1", "data.download=false", "together=4"])  # fmt: skip
def test_what_cannot_change_a_result_is_not_identity(harmless: str) -> None:
    assert run_id(compose([harmless]), "cpu") == run_id(compose([]), "cpu")


@pytest.mark.parametrize("harmful", ["seed=1", "steps=7", "optimizer.lr=0.3", "method=norm_clip", "batch_size=16",
                                     "data.split_seed=1", "precision=bf16", "data.verify=false", "role=final",
                                     "eval_every=9", "dataset.index=1.7"])  # fmt: skip
def test_what_can_change_a_result_is_identity(harmful: str) -> None:
    assert run_id(compose([harmful]), "cpu") != run_id(compose([]), "cpu")


def test_the_device_type_is_identity() -> None:
    assert run_id(compose([]), "cpu") != run_id(compose([]), "cuda")


@pytest.mark.parametrize("name", ["run.json", "metrics.parquet"])
def test_a_truncated_file_is_set_aside_and_the_run_repeated(name: str, tmp_path: Path) -> None:
    first = run(tmp_path)
    whole, rows = (first.folder / name).read_bytes(), values(first.folder)
    (first.folder / name).write_bytes(whole[: len(whole) // 2])
    said: list[str] = []
    second = execute(compose([*TINY, f"paths.results={tmp_path}", "device=cpu"]), say=said.append)
    assert not second.found
    assert (first.folder / f"{name}.damaged-1").exists()
    assert any(name in line and "damaged" in line for line in said)
    assert values(first.folder) == rows


def test_a_truncated_checkpoint_is_set_aside(tmp_path: Path) -> None:
    record = Record(tmp_path, say=lambda line: None)
    (tmp_path / "checkpoint.pt").write_bytes(b"PK\x03\x04 half a file")
    assert record.checkpoint() is None
    assert (tmp_path / "checkpoint.pt.damaged-1").exists()


def test_a_checkpoint_that_would_execute_code_is_refused(tmp_path: Path) -> None:
    import pickle

    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return print, ("executed",)

    (tmp_path / "checkpoint.pt").write_bytes(pickle.dumps(Evil()))
    assert Record(tmp_path, say=lambda line: None).checkpoint() is None


def test_one_process_per_run(tmp_path: Path) -> None:
    record = Record(tmp_path / "run")
    with record.locked():
        code = "import sys; from pathlib import Path; from clipbench.errors import RunLocked\n"
        code += "from clipbench.runs.record import Record\n"
        code += "try:\n with Record(Path(sys.argv[1])).locked(): print('got it')\nexcept RunLocked: print('locked')"
        command = [sys.executable, "-c", code, str(record.folder)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert done.stdout.strip() == "locked"
    with record.locked():
        pass
    with record.locked(), pytest.raises(RunLocked), Record(tmp_path / "run").locked():
        pass


def test_a_full_disk_leaves_the_earlier_record(tmp_path: Path) -> None:
    target = tmp_path / "run.json"
    atomic_write(target, lambda path: path.write_text("earlier") and None)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    code = (
        "import resource, signal, sys; from pathlib import Path\n"
        "from clipbench.errors import RecordError; from clipbench.runs.record import Record\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        "folder = Path(sys.argv[1])\n"
        "record = Record(folder)\n"
        "for write in (lambda: record.write_info({'x': 'y' * 9999}),\n"
        "              lambda: record.write_checkpoint({'x': __import__('torch').zeros(9999)})):\n"
        "    try: write(); print('written')\n"
        "    except RecordError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert resource.getrlimit(resource.RLIMIT_FSIZE) == limits
    assert done.stdout.count("cannot write") == 2, done.stdout
    assert target.read_text() == "earlier"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run.json"]


def test_a_failed_write_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match=r"cannot write .*metrics\.parquet: .*untouched"):
        Record(tmp_path / "missing").write_metrics([])


def test_a_stale_run_is_rerun_or_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = run(tmp_path)
    info = json.loads((first.folder / "run.json").read_text())
    (first.folder / "run.json").write_text(json.dumps(info | {"fingerprint": "other"}))
    said: list[str] = []
    common = [*TINY, f"paths.results={tmp_path}", "device=cpu"]
    assert execute(compose([*common, "stale=keep"]), say=said.append).found
    assert "made by other code" in said[-1]
    assert not execute(compose(common), say=said.append).found
    assert any(line.startswith("stale:") for line in said)


def test_a_failed_run_is_recorded_and_retried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from clipbench.training.trainer import Trainer

    with monkeypatch.context() as broken:
        broken.setattr(Trainer, "step", lambda self, step: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run(tmp_path)
    (folder,) = tmp_path.glob("runs/single/*")
    info = json.loads((folder / "run.json").read_text())
    assert info["status"] == "failed"
    assert info["error"].startswith("ZeroDivisionError")
    assert run(tmp_path, "retry=never").status == "failed"
    assert run(tmp_path).status == "ok"


def test_divergence_is_a_result(tmp_path: Path) -> None:
    outcome = run(tmp_path, "optimizer.lr=1e20")
    assert outcome.status == "diverged"
    assert outcome.info["steps_done"] < outcome.info["steps"]
    assert run(tmp_path, "optimizer.lr=1e20").found


def test_no_secret_of_the_environment_is_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "s3cret-value")
    outcome = run(tmp_path)
    for path in outcome.folder.iterdir():
        assert b"s3cret-value" not in path.read_bytes()


def test_the_code_of_a_users_own_method_is_part_of_the_fingerprint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = "from clipbench.clipping import NoClip\n\n\nclass Mine(NoClip):\n    {}\n"
    module = tmp_path / "my_method.py"
    module.write_text(source.format("'''A docstring.'''"))
    monkeypatch.syspath_prepend(str(tmp_path))
    overrides = ["method.clipper._target_=my_method.Mine"]
    first = run(tmp_path, *overrides)
    assert run(tmp_path, *overrides).found
    fingerprints._digest.cache_clear()
    module.write_text(source.format("'''Another docstring.'''"))
    assert run(tmp_path, *overrides).found
    fingerprints._digest.cache_clear()
    module.write_text(source.format("factor = 2"))
    changed = run(tmp_path, *overrides)
    assert not changed.found
    assert changed.info["fingerprint"] != first.info["fingerprint"]
