"""The record of a run: a folder that is whole at every moment, written by one process at a time.

`<results>/runs/<experiment>/<run id>/` holds `config.yaml`, `run.json`, `metrics.parquet` and, while the run is
unfinished, `checkpoint.pt`. What cannot be PARSED is moved aside under a name that says so, and counts as missing;
what cannot be READ (a disk that answers with an error) is left where it is, and the run does not begin.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from clipbench.errors import RecordError, RunLocked, Unwritable
from clipbench.runs.files import atomic_text, atomic_write, reason, set_aside, try_lock
from clipbench.runs.job import Row
from clipbench.runs.parquet import read_arrow

COLUMNS = ("step", "epoch", "samples", "train_seconds", "split", "metric", "value")
FINISHED = ("ok", "diverged")
STATUSES = (*FINISHED, "failed", "running")
NUMBERS = ("final", "best", "seconds")  # mappings of numbers
# What the entries of run.json that this program reads again must be.
ENTRIES: dict[str, type | tuple[type, ...]] = {
    "run_id": str, "experiment": str, "method": str, "status": str, "role": str, "seed": int, "attempt": int,
    "fingerprint": str, "final": dict, "best": dict, "seconds": dict, "device": dict, "versions": dict, "data": dict,
    "dataset": str, "model": str, "optimizer": str, "trial": int, "tuned": str, "precision": str, "steps": int,
    "samples_per_step": int, "steps_done": int, "together_fingerprint": str, "continued_by": list,
}  # fmt: skip


class State(NamedTuple):
    """What a record says of its run: `status` (absent, running, ok, diverged, failed) and its `run.json`."""

    status: str
    info: dict[str, Any]


class Record:
    """The folder of one run."""

    def __init__(self, folder: Path, say: Callable[[str], None] = print) -> None:
        self.folder = folder
        self._say = say

    def state(self) -> State:
        """The run's status as the folder tells it; a damaged `run.json` is set aside and counts as absent.

        Raises RecordError for a status that another version may know: its record is not overwritten.
        """
        info = self._read("run.json", parse_info)
        if info is None:
            return State("absent", {})
        status = info["status"]
        if status not in STATUSES:
            known = ", ".join(STATUSES)
            raise RecordError(f"{self.folder / 'run.json'} must have a status of {known}, got {status}; left as it is")
        if status in FINISHED and self.metrics() is None:
            return State("absent", info)
        return State(status, info)

    def metrics(self) -> list[Row] | None:
        """The rows of `metrics.parquet`, None where there are none (or the file was damaged)."""
        return self._read("metrics.parquet", lambda content: read_arrow(content).to_pylist())

    def checkpoint(self) -> dict[str, Any] | None:
        """The last checkpoint's content (tensors and plain values only), None where there is none."""
        import torch

        return self._read(
            "checkpoint.pt", lambda content: torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        )

    def _read(self, name: str, parse: Callable[[bytes], Any]) -> Any:
        path = self.folder / name
        try:
            content = path.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:  # perhaps only for a moment: a good file must not be moved away
            raise RecordError(f"cannot read {path}: {reason(error)}; left as it is") from error
        try:
            return parse(content)
        except Exception as error:  # whatever a parser makes of a truncated file
            why = str(error) if isinstance(error, OddEntry) else type(error).__name__
            self.refuse(name, f"is damaged ({why})")
            return None

    def refuse(self, name: str, why: str, word: str = "damaged") -> None:
        """Move a file aside that cannot be used, and say so."""
        path = self.folder / name
        self._say(f"{path} {why}; moved to {set_aside(path, word).name}, the run starts without it")

    def tidy(self, config: Mapping[str, Any]) -> None:
        """Mend a finished record: `config.yaml` where it is missing or damaged, and what a kill at the end left."""
        import yaml

        self.clean()

        if not isinstance(self._read("config.yaml", yaml.safe_load), Mapping):
            self.write_config(config)
            self._say(f"{self.folder / 'config.yaml'} was written anew")

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

    def write_error(self, text: str) -> None:
        """`error.txt`: the traceback of a failed run, for its user; `make collect` leaves it behind."""
        atomic_text(self.folder / "error.txt", text)

    def clean(self) -> None:
        """Remove the checkpoint, an earlier failure's traceback and what a killed write left aside."""
        for name in ("checkpoint.pt", "error.txt"):
            (self.folder / name).unlink(missing_ok=True)
        for part in self.folder.glob(".*.part"):
            part.unlink(missing_ok=True)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the run's lock, which the kernel releases when the process dies. Raises RunLocked, RecordError."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            holding = try_lock(self.folder / ".lock")
            mine = holding.__enter__()
        except OSError as error:
            message = f"paths.results must be a writable folder, got {self.folder}: {reason(error)}"
            raise Unwritable(message) from error
        try:
            if not mine:
                raise RunLocked(f"another process is executing the run {self.folder}")
            yield
        finally:
            holding.__exit__(None, None, None)


class OddEntry(ValueError):
    """An entry of run.json that is not what it should be."""


def parse_info(content: bytes) -> dict[str, Any]:
    """`run.json`, its entries checked. Raises ValueError for what is no record."""
    info = json.loads(content)
    if not isinstance(info, dict):
        raise OddEntry(f"it must hold a mapping, got {type(info).__name__}")
    for key in ("run_id", "experiment", "method", "seed", "role", "status"):
        if key not in info:
            raise OddEntry(f"it has no {key}")
    for key, kind in ENTRIES.items():
        value = info.get(key, None)
        if value is not None and (not isinstance(value, kind) or isinstance(value, bool)):
            raise OddEntry(f"{key} must be {_word(kind)}, got {value!r:.60}")
    for key in NUMBERS:
        for name, value in (info.get(key) or {}).items():
            if value is not None and (not isinstance(value, int | float) or isinstance(value, bool)):
                raise OddEntry(f"{key}.{name} must be a number, got {value!r:.60}")
    return info


def _word(kind: type | tuple[type, ...]) -> str:
    return {str: "a text", int: "a whole number", dict: "a mapping", list: "a list"}[kind]  # type: ignore[index]
