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
import json
import logging
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Literal, Protocol

from clipbench.runs.identity import counted

log = logging.getLogger(__name__)
Row = dict[str, Any]
CAPACITY = 1000
MODES = {"offline": "offline", "online": "online", "disabled": "disabled", "dryrun": "offline", "run": "online"}
PRIVATE = frozenset({"host", "user", "paths"})  # entries of run.json that tell of the machine's owner


class Tracker(Protocol):
    """What the runner tells: once `start`, `log` at every boundary of the clock, once `finish`. None of them
    raises."""

    def start(self, run_info: Mapping[str, Any], config: Mapping[str, Any], earlier: Sequence[Row] = ()) -> None:
        """The run begins, or goes on: its run.json so far, its resolved configuration, and the rows it had by then."""

    def log(self, rows: Sequence[Row]) -> None:
        """New rows of metrics.parquet."""

    def finish(self, status: str) -> str:
        """The run has ended: ok, diverged, failed or interrupted. A line for the user, empty where there is none."""


class NoTracker:
    """Tells nobody."""

    def start(self, run_info: Mapping[str, Any], config: Mapping[str, Any], earlier: Sequence[Row] = ()) -> None:
        pass

    def log(self, rows: Sequence[Row]) -> None:
        pass

    def finish(self, status: str) -> str:
        return ""


class WandbTracker:
    """Weights & Biases: group = experiment, name = method and seed, loss against steps, samples and seconds.

    What is None comes from W&B's own variables: `mode` from WANDB_MODE, else offline; `project` from WANDB_PROJECT,
    else clipbench; `directory`, where W&B makes its folder wandb/, from WANDB_DIR, else `results`. Tags are the method,
    dataset, model, optimizer and role, and those of WANDB_TAGS. `calibrated_step_seconds` gives the axis
    calibrated_seconds = step × that; None: what calibration.parquet says of the method, in `results` or in those of the
    checkout. `timeout` (seconds) bounds the wait in `finish`; connecting gets 60 % of it, and a run that cannot connect
    is stored offline. A resumed run continues its W&B run; offline, where every start has a folder of its own, all rows
    are stored again, so that the last folder is whole. Raises ValueError for a mode that W&B does not have and for a
    number that is not > 0.
    """

    def __init__(
        self,
        project: str | None = None,
        entity: str | None = None,
        mode: Literal["offline", "online", "disabled"] | None = None,
        directory: str | None = None,
        calibrated_step_seconds: float | None = None,
        timeout: float = 20.0,
        results: str = "results",
    ) -> None:
        if not 0 < timeout < float("inf"):
            raise ValueError(f"timeout must be finite and > 0, got {timeout}")
        if calibrated_step_seconds is not None and not 0 < calibrated_step_seconds < float("inf"):
            raise ValueError(f"calibrated_step_seconds must be finite and > 0, got {calibrated_step_seconds}")
        self._directory = Path(directory or os.environ.get("WANDB_DIR") or results).expanduser().absolute()
        self._timeout = timeout
        self._mode = _mode(mode)
        self._options = {
            "project": project or os.environ.get("WANDB_PROJECT") or "clipbench",
            "entity": entity,
            "mode": self._mode,
            "directory": str(self._directory),
            "step_seconds": calibrated_step_seconds,
            "timeout": timeout,
            "calibrations": [str(place) for place in (Path(results).absolute(), *_own_results())],
        }
        self._queue: queue.Queue[dict[str, Any] | None] = queue.Queue(CAPACITY)
        self._thread: threading.Thread | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._stdout: IO[bytes] | None = None
        self._stderr: IO[bytes] | None = None
        self._dropped = 0
        self._warned = False

    def start(self, run_info: Mapping[str, Any], config: Mapping[str, Any], earlier: Sequence[Row] = ()) -> None:
        if self._mode == "disabled":
            return
        if importlib.util.find_spec("wandb") is None:
            self._warn("the package wandb is not installed (pip install wandb)")
            return
        about = {"info": _public(run_info), "config": counted(config, "public"), "earlier": list(earlier)}
        self._queue.put_nowait({"options": self._options, **about})
        self._thread = threading.Thread(target=self._forward, name="wandb", daemon=True)
        self._thread.start()

    def log(self, rows: Sequence[Row]) -> None:
        if self._thread is None:
            return
        try:
            self._queue.put_nowait({"rows": list(rows)})
        except queue.Full:
            self._dropped += len(rows)

    def finish(self, status: str) -> str:
        if self._thread is None:
            return ""
        deadline = time.monotonic() + self._timeout
        thread, self._thread = self._thread, None
        for message in ({"status": status}, None):
            while thread.is_alive() and time.monotonic() < deadline:
                with contextlib.suppress(queue.Full):
                    self._queue.put(message, timeout=0.1)
                    break
        thread.join(max(0.0, deadline - time.monotonic()))
        self._end(deadline)
        return self._where()

    def _where(self) -> str:
        """Where the run is stored offline and how it is sent; empty where it is at W&B's, or nowhere."""
        folder = _last_line(self._stdout)
        return f"W&B: stored offline, to send it: wandb sync {folder}" if folder else ""

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
        self._stdout = tempfile.TemporaryFile()  # noqa: SIM115 - both are read when the process has ended
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115
        here = str(Path(__file__).resolve().parents[2])
        path = os.pathsep.join(filter(None, [here, os.environ.get("PYTHONPATH")]))
        return subprocess.Popen(
            [sys.executable, "-m", "clipbench.tracking.wandb_process"],
            stdin=subprocess.PIPE,
            stdout=self._stdout,
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
                f"no answer within {self._timeout:g} s; what it stored until then is in {self._directory / 'wandb'}"
            )
            return
        if code != 0:
            self._warn(_last_line(self._stderr) or f"its process ended with status {code}")
        elif self._dropped:
            self._warn(f"{self._dropped} rows were not sent, it was too slow")

    def _warn(self, reason: str) -> None:
        if not self._warned:
            log.warning("W&B: %s. The run and its record are not affected.", reason)
        self._warned = True


def _last_line(file: IO[bytes] | None) -> str:
    """The last line of what a process wrote."""
    if file is None:
        return ""
    file.seek(0)
    lines = file.read().decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else ""


def _mode(given: str | None) -> str:
    """The option, else WANDB_MODE, else offline."""
    mode = given or os.environ.get("WANDB_MODE") or "offline"
    if mode not in MODES:
        name = "mode" if given else "WANDB_MODE"
        raise ValueError(f"{name} must be one of {', '.join(dict.fromkeys(MODES.values()))}, got {mode}")
    return MODES[mode]


def _own_results() -> list[Path]:
    """The results folder of the checkout, where there is one: calibrations are committed there."""
    root = Path(__file__).resolve().parents[2]
    return [root / "results"] if (root / "conf" / "config.yaml").exists() else []


def _public(values: Mapping[str, Any]) -> dict[str, Any]:
    """`values` without what tells of the machine's owner."""
    return {str(key): value for key, value in values.items() if str(key) not in PRIVATE}
