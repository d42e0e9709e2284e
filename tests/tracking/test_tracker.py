"""W&B beside the record: what the real package stored is read back, and nothing it does can hold up a run."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from wandb.proto import wandb_internal_pb2

from clipbench.cli.compose import compose
from clipbench.errors import Stopped
from clipbench.runs.execute import execute
from clipbench.tracking import tracker as tracking
from clipbench.tracking.tracker import NoTracker, WandbTracker
from clipbench.tracking.wandb_process import entries
from tests.analysis.synthetic import write_calibration

INFO = {
    "run_id": "0123456789abcdef", "experiment": "toy/cpu", "method": "ps_clip", "seed": 3, "role": "single",
    "dataset": "cifar100", "model": None,
    "started": "2026-01-02T03:04:05+00:00", "commit": "c0ffee", "dirty": False, "host": "alices-laptop",
    "device": {"type": "cpu", "name": "Test CPU", "threads": 2}, "user": "alice",
    "precision": "fp32", "samples_per_step": 128, "fingerprint": "f" * 16, "tuned": None,
}  # fmt: skip
CONFIG = {
    "optimizer": {"lr": 0.1},
    "paths": {"results": "/home/alice"},
    "data": {"root": "/home/alice/d", "verify": True},
}


def row(step, split="train", metric="loss", value=1.0):
    return {
        "step": step, "epoch": step / 10, "samples": 128 * step, "train_seconds": 0.5 * step,
        "split": split, "metric": metric, "value": value,
    }  # fmt: skip


def stored(folder: Path):
    """The records of the largest .wandb file below `folder`: LevelDB's log format, seven bytes in front."""
    path = max(folder.rglob("*.wandb"), key=lambda p: p.stat().st_size)
    content, position, part = path.read_bytes(), 7, b""
    records = []
    while position + 7 <= len(content):
        if (left := 32768 - position % 32768) < 7:
            position += left
            continue
        _, length, kind = struct.unpack("<IHB", content[position : position + 7])
        part += content[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # a whole record, or the last part of one
            records.append(wandb_internal_pb2.Record.FromString(part))
            part = b""
    return records


def offline_folders(root: Path) -> list[Path]:
    """The folders of W&B's starts, the oldest first."""
    return sorted(root.glob("wandb/offline-run-*"), key=lambda path: path.stat().st_mtime_ns)


def history(records):
    found = []
    for record in records:
        if record.WhichOneof("record_type") == "history":
            items = {"/".join(i.nested_key) or i.key: json.loads(i.value_json) for i in record.history.item}
            found.append({key: value for key, value in items.items() if not key.startswith("_")})
    return found


def gone(arguments):
    """Whether no process with these arguments is left, after ten seconds at most."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        lines = []
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):  # it ended while we looked
                lines.append(path.read_bytes().replace(b"\0", b" ").decode(errors="replace"))
        if not any(arguments in line for line in lines):
            return True
        time.sleep(0.05)
    return False


def only(records, kind):
    return [getattr(record, kind) for record in records if record.WhichOneof("record_type") == kind]


@pytest.fixture(autouse=True)
def _no_settings_of_the_user(monkeypatch):
    for name in ("WANDB_MODE", "WANDB_DIR", "WANDB_PROJECT", "WANDB_TAGS"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def offline(tmp_path_factory):
    """What W&B stored of a run with a calibration."""
    root = tmp_path_factory.mktemp("offline")
    write_calibration(root)
    tracker = WandbTracker(directory=str(root / "wandb"), results=str(root), timeout=60.0)
    tracker.start(INFO, CONFIG)
    tracker.log([row(0, "validation", value=3.0), row(0, "validation", "accuracy", 0.01)])
    tracker.log([row(10), row(10, metric="gradient_norm", value=7.0), row(10, "validation", value=2.0)])
    tracker.log([row(20, value=math.nan)])
    tracker.finish("diverged")
    return stored(root)


def test_rows_are_stored_with_every_axis(offline):
    first, second, third = history(offline)
    axes = {"step": 10, "epoch": 1.0, "samples": 1280, "train_seconds": 5.0, "calibrated_seconds": 10 * 0.017}
    assert {k: second[k] for k in axes} == pytest.approx(axes)
    assert (second["train/loss"], second["validation/loss"], second["train/gradient_norm"]) == (1.0, 2.0, 7.0)
    for axis in ("samples", "train_seconds", "calibrated_seconds"):
        assert second[f"vs_{axis}/validation_loss"] == 2.0
        assert f"vs_{axis}/train_gradient_norm" not in second
    assert first["validation/accuracy"] == 0.01
    assert math.isnan(float(third["train/loss"]))


def test_metrics_are_defined_against_their_axes(offline):
    defined = {m.glob_name: m.step_metric for m in only(offline, "metric") if m.glob_name}
    assert defined == {
        "train/*": "step", "validation/*": "step", "test/*": "step", "vs_samples/*": "samples",
        "vs_train_seconds/*": "train_seconds", "vs_calibrated_seconds/*": "calibrated_seconds",
    }  # fmt: skip


def test_run_is_named_grouped_and_configured(offline):
    (run,) = only(offline, "run")
    assert (run.project, run.run_group, run.display_name) == ("clipbench", "toy/cpu", "ps_clip, seed 3")
    assert list(run.tags) == ["ps_clip", "cifar100", "single"]
    assert run.run_id == "0123456789abcdef-20260102030405"
    config = {item.key: json.loads(item.value_json) for item in run.config.update}
    assert config["optimizer"] == {"lr": 0.1}
    assert config["run"]["commit"] == "c0ffee"
    assert config["run"]["device"]["name"] == "Test CPU"
    assert "alice" not in json.dumps(config)


def test_status_and_exit_are_stored(offline):
    updates = [u for summary in only(offline, "summary") for u in summary.update]
    assert json.loads(next(u.value_json for u in updates if u.key == "status")) == "diverged"
    (end,) = only(offline, "exit")
    assert end.exit_code == 0


def test_a_killed_run_leaves_what_it_had_logged(tmp_path):
    """kill -9: W&B's process sees the end of the pipe, stores what it got, marks the run failed, and ends."""
    code = (
        "import sys, time; from clipbench.tracking.tracker import WandbTracker\n"
        "from tests.tracking.test_tracker import INFO, row\n"
        f"tracker = WandbTracker(directory={str(tmp_path)!r}, timeout=60.0); tracker.start(INFO, {{}})\n"
        "tracker.log([row(5)])\nwhile tracker._process is None or tracker._queue.qsize(): time.sleep(0.01)\n"
        "time.sleep(0.2); print(tracker._process.pid, flush=True); time.sleep(60)"
    )
    run = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    helper = int(run.stdout.readline())
    os.kill(run.pid, signal.SIGKILL)
    run.communicate()
    deadline = time.monotonic() + 30
    while Path(f"/proc/{helper}").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not Path(f"/proc/{helper}").exists()
    records = stored(tmp_path)
    assert [entry["step"] for entry in history(records)] == [5]
    assert only(records, "exit")[0].exit_code == 1


@pytest.fixture
def endpoint(monkeypatch, request):
    """A server that accepts connections and never answers ("hangs"), or an address where none is
    ("refuses")."""
    server = socket.create_server(("127.0.0.1", 0))
    accepted = []
    monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{server.getsockname()[1]}")
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    if request.param == "refuses":
        server.close()

    def accept():
        while True:
            try:
                accepted.append(server.accept())
            except OSError:
                return

    threading.Thread(target=accept, daemon=True).start()
    yield accepted
    server.close()


@pytest.mark.parametrize("endpoint", ["hangs", "refuses"], indirect=True)
def test_an_endpoint_that_does_not_answer_costs_a_warning_and_no_time(endpoint, tmp_path, caplog, request):
    tracker = WandbTracker(mode="online", directory=str(tmp_path), timeout=8.0)
    before = time.monotonic()
    tracker.start(INFO, CONFIG)
    for step in range(5000):  # more than the queue holds
        tracker.log([row(step)])
    assert time.monotonic() - before < 1.0, "logging must not wait"
    before = time.monotonic()
    tracker.finish("ok")
    assert time.monotonic() - before < 8.0 + 2.0
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "The run and its record are not affected." in caplog.text
    assert tracker._process.poll() is not None, "its process is gone"
    assert gone(f"--pid {tracker._process.pid}"), "and so is the service that W&B started"
    if request.node.callspec.params["endpoint"] == "hangs":
        assert endpoint, "it did try"


@pytest.mark.parametrize("endpoint", ["hangs"], indirect=True)
@pytest.mark.slow
def test_what_could_not_be_sent_is_stored_offline(endpoint, tmp_path, caplog):
    tracker = WandbTracker(mode="online", directory=str(tmp_path), timeout=60.0)
    tracker.start(INFO, CONFIG)
    tracker.log([row(1), row(2)])
    line = tracker.finish("ok")
    assert [entry["step"] for entry in history(stored(tmp_path))] == [1, 2]
    assert "stored offline" in caplog.text
    assert "wandb sync" in line


def test_a_process_that_fails_is_one_warning(tmp_path, monkeypatch, caplog):
    """A broken installation: the import of wandb raises in W&B's process, and its last words are the
    warning."""
    (tmp_path / "wandb").mkdir()
    (tmp_path / "wandb" / "__init__.py").write_text("raise ImportError('this wandb is broken')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    tracker = WandbTracker(directory=str(tmp_path / "out"), timeout=30.0)
    tracker.start(INFO, CONFIG)
    while tracker._process is None or tracker._process.poll() is None:
        time.sleep(0.01)
    for step in range(2000):
        tracker.log([row(step)])
    before = time.monotonic()
    tracker.finish("ok")
    assert time.monotonic() - before < 1.0, "there is nothing left to wait for"
    assert len(caplog.records) == 1
    assert "this wandb is broken" in caplog.text


def test_a_folder_that_cannot_be_written_is_one_warning(tmp_path, caplog):
    (tmp_path / "file").write_text("")
    tracker = WandbTracker(directory=str(tmp_path / "file" / "wandb"))
    tracker.start(INFO, CONFIG)
    tracker.log([row(1)])
    tracker.finish("ok")
    assert len(caplog.records) == 1


def test_without_the_package_there_is_one_warning(monkeypatch, caplog, tmp_path):
    monkeypatch.setattr(tracking.importlib.util, "find_spec", lambda name: None)
    tracker = WandbTracker(directory=str(tmp_path / "wandb"))
    tracker.start(INFO, CONFIG)
    tracker.log([row(1)])
    tracker.finish("ok")
    assert len(caplog.records) == 1
    assert "not installed" in caplog.text
    assert not (tmp_path / "wandb").exists()


def test_the_trackers_import_no_wandb():
    code = (
        "import sys, clipbench.tracking.tracker as t\n"
        "t.NoTracker().log([]); t.WandbTracker(); print('wandb' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"


def test_no_tracker_does_nothing():
    tracker = NoTracker()
    tracker.start(INFO, CONFIG)
    tracker.log([row(1)])
    assert tracker.finish("ok") == ""


def test_entries_join_the_rows_of_a_step():
    found = list(entries([row(1), row(1, "test", "accuracy", 0.5), row(2)], None))
    assert [entry["step"] for entry in found] == [1, 2]
    assert found[0]["vs_train_seconds/test_accuracy"] == 0.5
    assert not any("calibrated" in key for entry in found for key in entry)


def test_a_resumed_run_is_whole_in_its_last_folder(tmp_path):
    """Each start of an interrupted run has a folder of its own, and a sync of the last one must bring everything."""
    rows = [row(0, "validation", value=3.0), row(5), row(10), row(15), row(20, "test")]
    lines = []
    for done, status in ((0, "interrupted"), (2, "interrupted"), (4, "ok")):
        tracker = WandbTracker(directory=str(tmp_path), timeout=60.0)
        tracker.start(INFO, CONFIG, rows[:done])
        tracker.log(rows[done : done + 2])
        lines.append(tracker.finish(status))
        time.sleep(1.1)  # W&B names the folders by the second
    folders = offline_folders(tmp_path)
    assert [[entry["step"] for entry in history(stored(folder))] for folder in folders] == [
        [0, 5], [0, 5, 10, 15], [0, 5, 10, 15, 20],
    ]  # fmt: skip
    assert len({only(stored(folder), "run")[0].run_id for folder in folders}) == 1
    assert lines == [f"W&B: stored offline, to send it: wandb sync {folder}" for folder in folders]


def test_a_run_that_goes_on_tells_its_tracker_the_rows_it_had(tmp_path, capsys):
    words = ["logger=wandb", f"paths.results={tmp_path}", "steps=40", "log_every=10", "eval_every=20", "device=cpu"]
    config = compose([*words, "checkpoint_every=20", "logger.timeout=60.0"])
    with pytest.raises(Stopped):
        execute(config, watch=lambda rows: bool(rows) and rows[-1]["step"] >= 20)
    time.sleep(1.1)
    outcome = execute(config)
    first, last = offline_folders(tmp_path)
    assert [entry["step"] for entry in history(stored(first))] == [0, 10, 20]
    assert [entry["step"] for entry in history(stored(last))] == [0, 10, 20, 30, 40]
    (run,) = only(stored(last), "run")
    assert list(run.tags) == ["sgd", "heavy_tailed", "mlp", "single"]
    said = capsys.readouterr().out
    assert f"wandb sync {first}\n" in said
    assert f"wandb sync {last}\n" in said
    assert outcome.status == "ok"


@pytest.mark.parametrize(
    ("given", "variable", "mode"),
    [(None, None, "offline"), (None, "online", "online"), (None, "dryrun", "offline"), ("offline", "online", "offline"),
     (None, "disabled", "disabled"), ("online", "disabled", "online"), (None, "run", "online")],
)  # fmt: skip
def test_the_mode_is_the_option_else_the_variable(given, variable, mode, monkeypatch):
    monkeypatch.delenv("WANDB_MODE", raising=False)
    if variable is not None:
        monkeypatch.setenv("WANDB_MODE", variable)
    assert WandbTracker(mode=given)._options["mode"] == mode


def test_disabled_starts_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    tracker = WandbTracker(directory=str(tmp_path / "wandb"))
    tracker.start(INFO, CONFIG)
    tracker.log([row(1)])
    assert tracker.finish("ok") == ""
    assert tracker._process is None
    assert not (tmp_path / "wandb").exists()


def test_a_mode_that_wandb_does_not_have_is_named(monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "live")
    with pytest.raises(ValueError, match=r"^WANDB_MODE must be one of offline, online, disabled, got live$"):
        WandbTracker()


def test_the_variables_of_wandb_are_honoured(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_DIR", str(tmp_path / "own"))
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    monkeypatch.setenv("WANDB_TAGS", f"night, ps_clip,{'x' * 80}")
    tracker = WandbTracker(results=str(tmp_path / "results"), timeout=60.0)
    tracker.start(INFO, CONFIG)
    tracker.log([row(1)])
    line = tracker.finish("ok")
    (folder,) = offline_folders(tmp_path / "own")
    assert line.endswith(f"wandb sync {folder}")
    (run,) = only(stored(folder), "run")
    assert run.project == "mine"
    assert sorted(run.tags) == sorted(["ps_clip", "cifar100", "single", "night", "x" * 64])
    assert WandbTracker(directory=str(tmp_path / "given"))._directory == tmp_path / "given", "an option comes first"


def test_calibrated_axes_also_where_results_lie_elsewhere(tmp_path, monkeypatch):
    write_calibration(tmp_path / "checkout")
    damaged = tmp_path / "damaged" / "data"
    damaged.mkdir(parents=True)
    (damaged / "calibration.parquet").write_bytes(b"no table")
    monkeypatch.setattr(tracking, "_own_results", lambda: [tmp_path / "checkout"])
    for place in ("elsewhere", "damaged"):
        tracker = WandbTracker(results=str(tmp_path / place), timeout=60.0)
        tracker.start(INFO, CONFIG)
        tracker.log([row(10)])
        assert "wandb sync" in tracker.finish("ok")
        (entry,) = history(stored(tmp_path / place))
        assert entry["calibrated_seconds"] == pytest.approx(10 * 0.017)


def test_the_checkout_s_own_results_are_looked_at():
    (own,) = tracking._own_results()
    assert (own / "data" / "calibration.parquet").exists()


@pytest.mark.parametrize(
    ("option", "value"), [("timeout", 0.0), ("timeout", math.inf), ("calibrated_step_seconds", -1.0), ("mode", "live")]
)
def test_options_are_checked(option, value):
    with pytest.raises(ValueError, match=f"^{option} must be"):
        WandbTracker(**{option: value})
