"""Weights & Biases beside the record: told what happens, never waited for. The local record is the truth.

`WandbTracker` runs W&B in a process of its own. Rows go through a bounded queue and a daemon thread into that
process' pipe, so that nothing W&B does (import, network, its service, its exit handlers) happens in the
process that is timed. When the process fails, hangs or cannot start, one warning is logged and the run goes
on; `finish` waits for at most `timeout` seconds and then ends the process. What W&B had stored until then
stays on the disk, for `wandb sync`.
"""

from __future__ import annotations

import contextlib
import importlib.util
import itertools
import json
import logging
import os
import queue
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Literal, Protocol

log = logging.getLogger(__name__)
Row = dict[str, Any]
AXES = ("step", "samples", "train_seconds", "calibrated_seconds")
COMPARED = ("loss", "accuracy")
CAPACITY = 1000
DESCRIBED = (
    "run_id",
    "role",
    "trial",
    "commit",
    "dirty",
    "fingerprint",
    "device",
    "versions",
    "parameters",
    "data",
)
PRIVATE = frozenset({"host", "user", "paths", "root", "logger", "hydra"})


class Tracker(Protocol):
    """What the runner tells: once `start`, `log` at every boundary of the clock, once `finish`. None of them
    raises."""

    def start(self, run_info: Mapping[str, Any], config: Mapping[str, Any]) -> None:
        """The run begins (or goes on): its run.json so far and its resolved configuration."""

    def log(self, rows: Sequence[Row]) -> None:
        """New rows of metrics.parquet."""

    def finish(self, status: str) -> None:
        """The run has ended: ok, diverged, failed or interrupted."""


class NoTracker:
    """Tells nobody."""

    def start(self, run_info: Mapping[str, Any], config: Mapping[str, Any]) -> None:
        pass

    def log(self, rows: Sequence[Row]) -> None:
        pass

    def finish(self, status: str) -> None:
        pass


class WandbTracker:
    """Weights & Biases: group = experiment, name = method and seed, loss against every axis of `AXES`.

    `directory` is where W&B keeps its files, null: <results>/wandb. `calibrated_step_seconds` gives the axis
    calibrated_seconds = step × that; null: what results/data/calibration.parquet says of the method, if
    anything. `timeout` (seconds) bounds the wait in `finish`; connecting gets 60 % of it, and a run that
    cannot connect is stored offline. A resumed run continues its W&B run. Raises ValueError for a number that
    is not > 0.
    """

    def __init__(
        self,
        project: str = "clipbench",
        entity: str | None = None,
        mode: Literal["offline", "online"] = "offline",
        directory: str | None = None,
        calibrated_step_seconds: float | None = None,
        timeout: float = 20.0,
        results: str = "results",
    ) -> None:
        if mode not in ("offline", "online"):
            raise ValueError(f"mode must be one of offline, online, got {mode}")
        if not 0 < timeout < float("inf"):
            raise ValueError(f"timeout must be finite and > 0, got {timeout}")
        if calibrated_step_seconds is not None and not 0 < calibrated_step_seconds < float("inf"):
            raise ValueError(f"calibrated_step_seconds must be finite and > 0, got {calibrated_step_seconds}")
        folder = Path(directory) if directory is not None else Path(results) / "wandb"
        self._directory = folder.absolute()
        self._timeout = timeout
        self._options = {
            "project": project,
            "entity": entity,
            "mode": mode,
            "directory": str(self._directory),
            "step_seconds": calibrated_step_seconds,
            "timeout": timeout,
            "results": str(Path(results).absolute()),
        }
        self._queue: queue.Queue[dict[str, Any] | None] = queue.Queue(CAPACITY)
        self._thread: threading.Thread | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._stderr: IO[bytes] | None = None
        self._dropped = 0
        self._warned = False

    def start(self, run_info: Mapping[str, Any], config: Mapping[str, Any]) -> None:
        if importlib.util.find_spec("wandb") is None:
            self._warn("the package wandb is not installed (pip install wandb)")
            return
        message = {"options": self._options, "info": _public(run_info), "config": _public(config)}
        self._queue.put_nowait(message)
        self._thread = threading.Thread(target=self._forward, name="wandb", daemon=True)
        self._thread.start()

    def log(self, rows: Sequence[Row]) -> None:
        if self._thread is None:
            return
        try:
            self._queue.put_nowait({"rows": list(rows)})
        except queue.Full:
            self._dropped += len(rows)

    def finish(self, status: str) -> None:
        if self._thread is None:
            return
        deadline = time.monotonic() + self._timeout
        thread, self._thread = self._thread, None
        for message in ({"status": status}, None):
            while thread.is_alive() and time.monotonic() < deadline:
                with contextlib.suppress(queue.Full):
                    self._queue.put(message, timeout=0.1)
                    break
        thread.join(max(0.0, deadline - time.monotonic()))
        self._end(deadline)

    def _forward(self) -> None:
        """The thread: start W&B's process, pass on the queue until None or until the process is gone."""
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            self._process = self._spawn()
            pipe = self._process.stdin
            for message in iter(self._queue.get, None):
                if pipe is not None:
                    pipe.write(json.dumps(message, default=str).encode() + b"\n")
                    pipe.flush()
            if pipe is not None:
                pipe.close()
        except BrokenPipeError:
            pass  # `_end` reports what the process said before it ended
        except (OSError, ValueError, TypeError) as error:
            self._warn(f"{type(error).__name__}: {error}")

    def _spawn(self) -> subprocess.Popen[bytes]:
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 - read when the process has ended
        here = str(Path(__file__).resolve().parents[1])
        path = os.pathsep.join(filter(None, [here, os.environ.get("PYTHONPATH")]))
        return subprocess.Popen(
            [sys.executable, "-m", "clipbench.tracking"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=self._stderr,
            cwd=self._directory,
            env=os.environ | {"PYTHONPATH": path},
            start_new_session=True,  # a Ctrl-C is for the run, which then says `finish`
        )

    def _end(self, deadline: float) -> None:
        process = self._process
        if process is None:
            return
        try:
            code = process.wait(max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            self._warn(
                f"no answer within {self._timeout:g} s; `wandb sync` sends what is in {self._directory}"
            )
            return
        if code != 0:
            self._warn(self._last_words() or f"its process ended with status {code}")
        elif self._dropped:
            self._warn(f"{self._dropped} rows were not sent, it was too slow")

    def _last_words(self) -> str:
        if self._stderr is None:
            return ""
        self._stderr.seek(0)
        lines = self._stderr.read().decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else ""

    def _warn(self, reason: str) -> None:
        if not self._warned:
            log.warning("W&B: %s. The run and its record are not affected.", reason)
        self._warned = True


def _public(values: Mapping[str, Any]) -> dict[str, Any]:
    """`values` without what tells of the machine's owner."""
    return {
        str(key): _public(value) if isinstance(value, Mapping) else value
        for key, value in values.items()
        if str(key) not in PRIVATE
    }


def entries(rows: Iterable[Row], step_seconds: float | None) -> Iterable[dict[str, Any]]:
    """One W&B entry per step: "validation/loss" …, every axis, and loss and accuracy once more below each
    axis' name.

    W&B gives a metric one axis; "vs_train_seconds/validation_loss" is the same number with another.
    """
    for step, group in itertools.groupby(rows, key=lambda row: row["step"]):
        entry: dict[str, Any] = {}
        for row in group:
            axes = {
                "step": step,
                "epoch": row["epoch"],
                "samples": row["samples"],
                "train_seconds": row["train_seconds"],
            }
            if step_seconds is not None:
                axes["calibrated_seconds"] = step * step_seconds
            entry |= axes | {f"{row['split']}/{row['metric']}": row["value"]}
            if row["metric"] in COMPARED:
                name = f"{row['split']}_{row['metric']}"
                entry |= {f"vs_{axis}/{name}": row["value"] for axis in AXES[1:] if axis in axes}
        yield entry


def _serve(pipe: IO[bytes]) -> None:
    """W&B's own process: the first line opens the run, the others log, the end of the pipe closes it."""
    first = json.loads(pipe.readline())
    options, info = first["options"], first["info"]
    run, note = _open(options, info, first["config"])
    seconds = options["step_seconds"] or _calibrated(options["results"], info)
    for axis in AXES:
        run.define_metric(axis)
    for axis in AXES[1:]:
        run.define_metric(f"vs_{axis}/*", step_metric=axis)
    for split in ("train", "validation", "test"):
        run.define_metric(f"{split}/*", step_metric="step")
    status = "interrupted"  # the run's process ended without a word
    for line in pipe:
        message = json.loads(line)
        status = message.get("status", status)
        for entry in entries(message.get("rows", ()), seconds):
            run.log(entry)
    # The run may have been killed: nobody else would end this process where W&B does not answer.
    watchdog = threading.Timer(options["timeout"], os._exit, [3])
    watchdog.daemon = True
    watchdog.start()
    run.summary["status"] = status
    run.finish(exit_code=0 if status in ("ok", "diverged") else 1)
    print(note, file=sys.stderr, flush=True)
    # Everything is stored by now. W&B's exit handlers would talk to a server that need not answer, offline
    # too; its service ends by itself when this process is gone.
    os._exit(1 if note else 0)


def _open(options: Mapping[str, Any], info: Mapping[str, Any], config: Mapping[str, Any]) -> tuple[Any, str]:
    """The W&B run, and a note where it had to be opened offline."""
    import wandb

    # A run made anew is another W&B run, a resumed one is not: its `started` is the first one's.
    name = f"{info['run_id']}-{re.sub('[^0-9]', '', str(info.get('started')))[:14]}"

    def init(mode: Literal["offline", "online"], identity: str) -> Any:
        return wandb.init(
            project=options["project"],
            entity=options["entity"],
            dir=options["directory"],
            mode=mode,
            id=identity,
            resume="allow" if mode == "online" else None,
            group=info["experiment"],
            name=f"{info['method']}, seed {info['seed']}",
            job_type=info.get("role"),
            config=dict(config) | {"run": {key: info[key] for key in DESCRIBED if key in info}},
            settings=wandb.Settings(
                console="off",
                silent=True,
                save_code=False,
                x_disable_stats=True,  # sampling the machine would disturb what is timed
                x_disable_machine_info=True,
                x_disable_viewer=mode == "offline",  # asks the server who is logged in, offline too
                init_timeout=0.6 * options["timeout"],
            ),
        )

    if options["mode"] == "offline":
        return init("offline", name), ""
    try:
        return init("online", name), ""
    except Exception as error:  # whatever W&B raises: no account, no network, no answer
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        where = f"stored offline, `wandb sync` sends what is in {options['directory']}"
        return init("offline", f"{name}-offline"), f"{reason}; {where}"  # the service keeps the refused id


def _calibrated(results: str, info: Mapping[str, Any]) -> float | None:
    """The calibrated step time of the run's method, None where there is none."""
    if not (Path(results) / "data" / "calibration.parquet").exists():
        return None
    import pandas as pd

    from clipbench.analysis.load import load_calibration

    table = load_calibration(
        Path(results), info["experiment"], pd.DataFrame({"device": [info.get("device") or {}]})
    )
    return float(table.loc[info["method"], "step_seconds"]) if info["method"] in table.index else None


if __name__ == "__main__":
    _serve(sys.stdin.buffer)
