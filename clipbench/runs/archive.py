"""results/data/<experiment>.parquet: all runs of an experiment in one file, which travels with the project.

The file has one row per metric row, with the run's own columns beside it:

- `step`, `epoch`, `samples`, `train_seconds`, `split`, `metric`, `value` as in metrics.parquet; a run that left no
  metrics keeps one row in which these are null, so that a failed run is still counted;
- entries of run.json under their own names: numbers and words as they are, mappings as JSON text; and `config`, the
  resolved configuration, as JSON text.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from clipbench.errors import RecordError
from clipbench.runs.files import atomic_write
from clipbench.runs.parquet import read_arrow, read_frame
from clipbench.runs.record import COLUMNS

SHIPPED = Path(__file__).parents[1] / "published"  # in a wheel
METRIC_COLUMNS = list(COLUMNS)
MAPPINGS = ("final", "best", "seconds", "device", "versions", "data", "config", "continued_by")
_NEEDED = {"run_id", "experiment", "config", "metric"}


class Run(NamedTuple):
    """One run: `info` holds run.json and the config (mappings as JSON text), `metrics` the long table."""

    info: dict[str, Any]
    metrics: pd.DataFrame


def stem(experiment: str) -> str:
    """A file name for an experiment, another for every experiment: "a/b" is a__b, and "a__b" a%5F%5Fb."""
    plain = experiment.replace("/", "__")
    if plain.replace("__", "/") == experiment and "%" not in experiment:
        return plain
    return experiment.replace("%", "%25").replace("_", "%5F").replace("/", "__")


def places(results: Path) -> list[Path]:
    """Results folders whose data/ holds collected runs: one's own, and what an installed package brings with it."""
    return [results, SHIPPED] if (SHIPPED / "data").is_dir() else [results]


def data_file(results: Path, experiment: str) -> Path:
    """results/data/<stem>.parquet."""
    return results / "data" / f"{stem(experiment)}.parquet"


def selection_file(results: Path, experiment: str) -> Path:
    """results/data/<stem>__tuning.json: what the latest tuning selected for every method."""
    return results / "data" / f"{stem(experiment)}__tuning.json"


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """For the block, a file of results/data that cannot be read or parsed is a RecordError that names it."""
    try:
        yield
    except (OSError, ValueError, pa.ArrowException) as error:  # damaged JSON and most damaged parquet are ValueErrors
        raise RecordError(f"{path} cannot be read ({type(error).__name__}); make it again or restore it") from error


def holds_runs(path: Path) -> bool:
    """Whether a parquet file of results/data holds runs (and not a benchmark's or a calibration's table)."""
    with reading(path):
        return set(pq.read_schema(path).names) >= _NEEDED


def read_table(path: Path) -> pd.DataFrame:
    """A table of results/data. Raises RecordError, naming the file, where it cannot be read."""
    with reading(path):
        return read_frame(path)


def read_mapping(path: Path) -> dict[str, Any]:
    """The mapping in a JSON file of results/data. Raises RecordError, naming it, where there is none."""
    with reading(path):
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError(f"it must hold a mapping, got {type(content).__name__}")
        return content


def read_data(path: Path) -> list[Run]:
    """The runs of a collected file. Raises RecordError, naming it, where it cannot be read."""
    with reading(path):
        table = read_frame(path, types_mapper=pd.ArrowDtype)
    columns = [c for c in table.columns if c not in METRIC_COLUMNS]
    runs = []
    for _, rows in table.groupby("run_id", sort=False):  # in the file's order
        first = rows.iloc[0]
        info = {str(c): (None if pd.isna(first[c]) else first[c]) for c in columns}
        metrics = rows[METRIC_COLUMNS].dropna(subset=["metric"]).reset_index(drop=True)
        runs.append(Run(info, metrics))
    return runs


def write_data(path: Path, runs: Sequence[Run]) -> None:
    """Write the runs to `path`; nothing is written where the file holds these bytes already."""
    index = [i for i, run in enumerate(runs) for _ in range(max(len(run.metrics), 1))]
    frames = [run.metrics if len(run.metrics) else pd.DataFrame([{}], columns=METRIC_COLUMNS) for run in runs]
    columns: dict[str, pa.Array] = {}
    for key in dict.fromkeys(key for run in runs for key in run.info):
        columns[key] = _array([run.info.get(key) for run in runs]).take(pa.array(index))
    types = {"step": pa.int64(), "samples": pa.int64(), "split": pa.string(), "metric": pa.string()}
    for key in METRIC_COLUMNS:
        values = [None if pd.isna(v) and key != "value" else v for frame in frames for v in frame[key]]
        columns[key] = pa.array(values, type=types.get(key, pa.float64()))
    path.parent.mkdir(parents=True, exist_ok=True)
    sink = pa.BufferOutputStream()
    apart = [key for key in ("epoch", "train_seconds") if key in columns]  # smaller byte by byte: they hardly change
    plain = [key for key in columns if key not in apart]
    pq.write_table(
        pa.table(columns), sink, compression="zstd", compression_level=19, use_dictionary=plain,
        use_byte_stream_split=apart,
    )  # fmt: skip
    content = sink.getvalue().to_pybytes()
    if not path.exists() or path.read_bytes() != content:
        atomic_write(path, lambda part: part.write_bytes(content))


def _array(values: list[Any]) -> pa.Array:
    try:
        return pa.array(values)
    except (pa.ArrowInvalid, pa.ArrowTypeError):  # one column, several types: as text
        return pa.array([None if v is None else str(v) for v in values])


def published(results: Path, experiment: str, run_id: str) -> dict[str, Any] | None:
    """The entries of a collected run, mappings as such; None where it is not there."""
    path = data_file(results, experiment)
    try:
        stat = path.stat()
    except OSError:
        return None
    return _index(path, stat.st_mtime_ns, stat.st_size).get(run_id)


@functools.lru_cache(maxsize=8)
def _index(path: Path, mtime: int, size: int) -> dict[str, dict[str, Any]]:
    """The runs of a file by run id, read once for a state of the file. RecordError for one that cannot be read."""
    with reading(path):
        names = [name for name in pq.read_schema(path).names if name not in METRIC_COLUMNS]
        if "run_id" not in names:
            return {}
        table = read_arrow(path, names)
    ids = np.asarray(table.column("run_id").to_pylist())
    _, first = np.unique(ids, return_index=True)
    return {row["run_id"]: _mappings(row) for row in table.take(pa.array(first)).to_pylist()}


def _mappings(row: dict[str, Any]) -> dict[str, Any]:
    for name in MAPPINGS:
        if isinstance(row.get(name), str):
            row[name] = json.loads(row[name])
    return row
