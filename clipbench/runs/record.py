"""The record of a run: a folder that is whole at every moment, written by one process at a time.

`<results>/runs/<experiment>/<run id>/` holds `config.yaml`, `run.json`, `metrics.parquet` and, while the run is
unfinished, `checkpoint.pt`. Every file is written aside, flushed to the disk and renamed, so that a reader (or a
process started after a kill) sees the old file or the new one, never a part. What cannot be read is moved aside
under a name that says so, and counts as missing.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple

Row = dict[str, Any]
COLUMNS = ("step", "epoch", "samples", "train_seconds", "split", "metric", "value")
# What cannot change a result: not part of a run's identity.
NOT_IDENTITY = (
    "logger", "paths", "log_every", "log_layers", "checkpoint_every", "stale", "retry", "threads",
    "tuning", "calibration",
)  # fmt: skip
DATA_NOT_IDENTITY = ("root", "download")


class RecordError(RuntimeError):
    """A record that cannot be written or read; the message names the file."""


class RunLocked(RecordError):
    """Another process is executing this run."""


class State(NamedTuple):
    """What a record says of its run: `status` (absent, running, ok, diverged, failed) and its `run.json`."""

    status: str
    info: dict[str, Any]


def run_id(config: Mapping[str, Any], device_type: str) -> str:
    """16 hexadecimal digits: SHA-256 of the resolved config and the device type.

    Left out is what cannot change a result: logger, paths, `data.root`, `data.download`, the intervals of
    logging and checkpoints, threads, the rules for stale and failed runs, and how tuning and calibration go about it.
    """
    kept = {key: value for key, value in config.items() if key not in NOT_IDENTITY}
    kept["data"] = {k: v for k, v in dict(config.get("data", {})).items() if k not in DATA_NOT_IDENTITY}
    kept["method"] = {k: v for k, v in dict(config.get("method", {})).items() if k != "tuning"}
    kept["device"] = device_type
    return hashlib.sha256(json.dumps(kept, sort_keys=True, default=str).encode()).hexdigest()[:16]


def recorded(config: Mapping[str, Any]) -> dict[str, Any]:
    """What a record keeps of a config: all but how tuning and calibration go about it.

    No run depends on that, and the URL of a tuning's database may hold a password.
    """
    kept = {key: value for key, value in config.items() if key not in ("tuning", "calibration")}
    if "method" in config:
        kept["method"] = {key: value for key, value in dict(config["method"]).items() if key != "tuning"}
    return kept


def atomic_write(path: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a file aside, flush it to the disk, and rename it to `path`.

    Raises RecordError, with the earlier file untouched, where the disk is full or the folder is read-only.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        write(part)
        with open(part, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(part, path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except (OSError, RuntimeError) as error:  # torch reports a full disk as RuntimeError
        part.unlink(missing_ok=True)
        raise RecordError(f"cannot write {path}: {_reason(error)}; what was there before is untouched") from error


def _reason(error: BaseException) -> str:
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, OSError):
        cause = cause.__cause__ or cause.__context__
    number = getattr(cause, "errno", None)
    if number in (errno.ENOSPC, errno.EDQUOT):
        return "no space left on the disk"
    return os.strerror(number) if number else str(error).splitlines()[0]


def atomic_text(path: Path, text: str) -> None:
    """`atomic_write` of a text in UTF-8."""
    atomic_write(path, lambda part: _write_text(part, text))


def set_aside(path: Path) -> Path:
    """Rename a damaged file (or folder) to `<name>.damaged-<k>` and return its new path."""
    k = 1
    while (target := path.with_name(f"{path.name}.damaged-{k}")).exists():
        k += 1
    os.replace(path, target)
    return target


class Record:
    """The folder of one run."""

    def __init__(self, folder: Path, say: Callable[[str], None] = print) -> None:
        self.folder = folder
        self._say = say

    def state(self) -> State:
        """The run's status as the folder tells it; a damaged `run.json` is set aside and counts as absent."""
        info = self._read("run.json", lambda path: json.loads(path.read_text()))
        if not isinstance(info, dict) or "status" not in info:
            return State("absent", {})
        if info["status"] in ("ok", "diverged") and self.metrics() is None:
            return State("absent", {})
        return State(str(info["status"]), info)

    def metrics(self) -> list[Row] | None:
        """The rows of `metrics.parquet`, None where there are none (or the file was damaged)."""
        import pyarrow.parquet as pq

        return self._read("metrics.parquet", lambda path: pq.read_table(path).to_pylist())

    def checkpoint(self) -> dict[str, Any] | None:
        """The last checkpoint's content (tensors and plain values only), None where there is none."""
        import torch

        return self._read("checkpoint.pt", lambda path: torch.load(path, map_location="cpu", weights_only=True))

    def _read(self, name: str, read: Callable[[Path], Any]) -> Any:
        path = self.folder / name
        if not path.exists():
            return None
        try:
            return read(path)
        except Exception as error:  # whatever a parser makes of a truncated file
            aside = set_aside(path)
            self._say(f"{path} is damaged ({type(error).__name__}); moved to {aside.name}, the run starts without it")
            return None

    def write_config(self, config: Mapping[str, Any]) -> None:
        import yaml

        text = yaml.safe_dump(dict(config), sort_keys=False)
        atomic_text(self.folder / "config.yaml", text)

    def write_info(self, info: Mapping[str, Any]) -> None:
        text = json.dumps(info, indent=1, default=str) + "\n"
        atomic_text(self.folder / "run.json", text)

    def write_metrics(self, rows: list[Row]) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        types = (pa.int64(), pa.float64(), pa.int64(), pa.float64(), pa.string(), pa.string(), pa.float64())
        schema = pa.schema(list(zip(COLUMNS, types, strict=True)))
        table = pa.Table.from_pylist(rows, schema=schema)
        atomic_write(self.folder / "metrics.parquet", lambda path: pq.write_table(table, path))

    def write_checkpoint(self, content: Mapping[str, Any]) -> None:
        import torch

        def save(path: Path) -> None:
            with open(path, "wb") as file:  # given a path, torch would not say why it could not write
                torch.save(dict(content), file)

        atomic_write(self.folder / "checkpoint.pt", save)

    def write_error(self, error: BaseException) -> None:
        """`error.txt`: the traceback of a failed run, for its user; `make collect` leaves it behind."""
        atomic_text(self.folder / "error.txt", "".join(traceback.format_exception(error)))

    def drop_checkpoint(self) -> None:
        """Remove the checkpoint, an earlier failure's traceback and what a killed write left aside."""
        for name in ("checkpoint.pt", "error.txt"):
            (self.folder / name).unlink(missing_ok=True)
        for part in self.folder.glob(".*.part"):
            part.unlink(missing_ok=True)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the run's lock, which the kernel releases when the process dies. Raises RunLocked, RecordError."""
        path = self.folder / ".lock"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            handle = hold(path)
        except OSError as error:
            message = f"paths.results must be a writable folder, got {self.folder}: {_reason(error)}"
            raise RecordError(message) from error
        if handle is None:
            raise RunLocked(f"another process is executing the run {self.folder}")
        with handle:
            yield


def hold(path: Path) -> IO[str] | None:
    """The lock file, locked until it is closed or the process dies; None where another process holds it."""
    handle = open(path, "a")  # noqa: SIM115 - held for as long as the caller works
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        handle.close()
        return None
    return handle


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """Holds the lock file for the block, after waiting for whoever holds it now."""
    while (handle := hold(path)) is None:
        time.sleep(0.01)
    with handle:
        yield


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
