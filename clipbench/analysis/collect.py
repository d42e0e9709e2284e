"""Records → results/data/<experiment>.parquet: all runs of an experiment in one file, from one or several
machines.

The file has one row per metric row, with the run's own columns beside it (see `load.py` for the way back):

- `step`, `epoch`, `samples`, `train_seconds`, `split`, `metric`, `value` as in metrics.parquet; a run that
  left no metrics keeps one row in which these are null, so that a failed run is still counted;
- every entry of run.json under its own name: numbers and words as they are, mappings (`final`, `best`,
  `seconds`, `device`, `versions`, `data`) as JSON text; and `config`, the resolved configuration, as JSON
  text.

What tells of the machine's owner is left out: `host`, `user`, `paths`, the logger's options, the data's
folder, and the directories of any absolute path within a text. The same runs always give the same bytes.
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from clipbench.runs.equal import representative

METRIC_COLUMNS = ["step", "epoch", "samples", "train_seconds", "split", "metric", "value"]
REQUIRED = ("run_id", "experiment", "method", "seed", "role", "status")
DROPPED = frozenset({"host", "user", "hostname", "username", "paths", "root", "logger", "hydra"})
FINISHED = {"ok": 2, "diverged": 2, "failed": 1}
_ABSOLUTE = re.compile(r"(?<![\w:/.~])(?:[A-Za-z]:)?(?:[/\\][\w.~@+ -]*[\w.~@+-])+[/\\]([\w.~@+-]+)")


class Run(NamedTuple):
    """One run: `info` holds run.json and the config (as JSON text, nothing of its owner), `metrics` the long
    table."""

    info: dict[str, Any]
    metrics: pd.DataFrame


class Collected(NamedTuple):
    """What `collect` wrote (experiment → number of runs), and what its user should know, one line each."""

    runs: dict[str, int]
    warnings: list[str]


def data_file(results: Path, experiment: str) -> Path:
    """results/data/<experiment, "/" as "__">.parquet."""
    return results / "data" / f"{experiment.replace('/', '__')}.parquet"


def scrub(value: Any) -> Any:
    """`value` without the entries of `DROPPED`, and without the directories of absolute paths inside
    texts."""
    if isinstance(value, Mapping):
        return {str(k): scrub(v) for k, v in value.items() if str(k) not in DROPPED}
    if isinstance(value, list | tuple):
        return [scrub(v) for v in value]
    return _ABSOLUTE.sub(r"…/\1", value) if isinstance(value, str) else value


def read_record(folder: Path) -> Run:
    """The record in `folder`. Raises ValueError, naming the file, where one is missing, cut off or not a
    record."""
    try:
        info = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        missing = [key for key in REQUIRED if key not in info]
    except (OSError, ValueError) as error:
        raise ValueError(f"{folder / 'run.json'} cannot be read ({type(error).__name__})") from error
    if missing:
        raise ValueError(f"{folder / 'run.json'} has no {', '.join(missing)}")
    try:
        config = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8")) or {}
    except (OSError, yaml.YAMLError, ValueError) as error:
        raise ValueError(f"{folder / 'config.yaml'} cannot be read ({type(error).__name__})") from error
    path = folder / "metrics.parquet"
    try:
        metrics = pd.read_parquet(path)[METRIC_COLUMNS] if path.exists() else pd.DataFrame(columns=METRIC_COLUMNS)
    except (OSError, KeyError, pa.ArrowException) as error:
        raise ValueError(f"{path} cannot be read ({type(error).__name__})") from error
    return Run(_flat(scrub(info) | {"config": scrub(config)}), metrics.reset_index(drop=True))


def _flat(info: Mapping[str, Any]) -> dict[str, Any]:
    """Mappings and lists become JSON text with sorted keys; numbers and words stay."""
    return {
        key: json.dumps(value, sort_keys=True, ensure_ascii=False, default=str)
        if isinstance(value, Mapping | list)
        else value
        for key, value in info.items()
        if key not in METRIC_COLUMNS
    }


def find_records(root: Path) -> Iterator[Path]:
    """The record folders below `root`, a results folder or a folder of runs. Folders put aside are passed
    over.

    A record's folder is named by its run id; anything else (a broken or a stale record moved aside) is no
    record.
    """
    base = root / "runs" if (root / "runs").is_dir() else root
    for path in sorted(base.rglob("run.json")):
        try:
            named = json.loads(path.read_text(encoding="utf-8")).get("run_id")
        except (OSError, ValueError, AttributeError):
            named = path.parent.name  # cannot be read: `read_record` says so
        if named == path.parent.name:
            yield path.parent


def read_data(path: Path) -> list[Run]:
    """The runs of a collected file."""
    table = pd.read_parquet(path, dtype_backend="pyarrow")
    columns = [c for c in table.columns if c not in METRIC_COLUMNS]
    runs = []
    for _, rows in table.groupby("run_id", sort=False):  # in the file's order
        first = rows.iloc[0]
        info = {str(c): (None if pd.isna(first[c]) else first[c]) for c in columns}
        metrics = rows[METRIC_COLUMNS].dropna(subset=["metric"]).reset_index(drop=True)
        runs.append(Run(info, metrics))
    return runs


def _equal(left: Any, right: Any) -> bool:
    both_nan = left != left and right != right  # NaN is the one value that differs from itself
    return bool(left == right or both_nan)


def _differences(left: Run, right: Run) -> list[str]:
    """What two records of one run id differ in: entries of run.json, and "metrics". Empty for copies of one
    record."""
    keys = dict.fromkeys([*left.info, *right.info])
    differing = [key for key in keys if not _equal(left.info.get(key), right.info.get(key))]
    rows = [[*zip(*(run.metrics[c].tolist() for c in METRIC_COLUMNS), strict=True)] for run in (left, right)]
    same = len(rows[0]) == len(rows[1]) and all(
        _equal(x, y) for pair in zip(*rows, strict=True) for x, y in zip(*pair, strict=True)
    )
    return differing + ([] if same else ["metrics"])


def _rank(run: Run) -> tuple[int, str]:
    return FINISHED.get(run.info["status"], 0), str(run.info.get("finished") or run.info.get("started") or "")


def merge(runs: Iterable[Run]) -> tuple[list[Run], list[str]]:
    """One run per run id: identical copies count once; of two that differ the finished one, then the newer,
    is kept.

    Returns the runs in a fixed order and a line for each conflict between two FINISHED ones (that a run went
    on since it was last collected is no conflict).
    """
    kept: dict[str, Run] = {}
    conflicts = []
    for run in runs:
        name = str(run.info["run_id"])
        other = kept.setdefault(name, run)
        differences = _differences(run, other)
        if not differences:
            continue
        kept[name], dropped = (run, other) if _rank(run) > _rank(other) else (other, run)
        if min(_rank(run)[0], _rank(other)[0]) == 2:
            label = f"{run.info['method']}, seed {run.info['seed']}"
            what = ", ".join(differences[:5]) + (", …" if len(differences) > 5 else "")
            stamps = f"kept {_rank(kept[name])[1] or '?'}, not {_rank(dropped)[1] or '?'}"
            conflicts.append(f"{run.info['experiment']}: two records of {name} ({label}) differ in {what}: {stamps}")
    return sorted(kept.values(), key=_order), conflicts


def _order(run: Run) -> tuple[str, ...]:
    numbers = (f"{run.info.get(key) if run.info.get(key) is not None else -1:>12}" for key in ("seed", "trial"))
    return (str(run.info["role"]), str(run.info["method"]), *numbers, str(run.info["run_id"]))


def write_data(path: Path, runs: Sequence[Run]) -> None:
    """Write the runs to `path`, aside first and then in its place."""
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
    aside = path.with_suffix(".parquet.part")
    pq.write_table(pa.table(columns), aside, compression="zstd")
    os.replace(aside, path)


def _array(values: list[Any]) -> pa.Array:
    try:
        return pa.array(values)
    except (pa.ArrowInvalid, pa.ArrowTypeError):  # one column, several types: as text
        return pa.array([None if v is None else str(v) for v in values])


def fingerprint_warning(experiment: str, runs: Sequence[Run]) -> list[str]:
    """A line where the runs of an experiment come from several versions of the code."""
    counts = Counter(representative(str(run.info.get("fingerprint"))) for run in runs)
    if len(counts) < 2:
        return []
    parts = ", ".join(f"{count} by {name[:12]}" for name, count in counts.most_common())
    return [f"{experiment}: runs of {len(counts)} versions of the code ({parts})"]


def collect(
    results: Path, roots: Sequence[Path] = (), experiments: Sequence[str] = (), fresh: bool = False
) -> Collected:
    """Write results/data/<experiment>.parquet from the records below `roots` (default: `results` itself).

    Runs that are in the file but not below `roots` stay (they came from another machine), unless `fresh`.
    `experiments` limits what is written. Raises ValueError for a root or an experiment that is not there.
    """
    found, warnings = _gather(roots or [results], required=bool(roots))
    unknown = [name for name in experiments if name not in found and not data_file(results, name).exists()]
    if unknown:
        known = ", ".join(sorted(found)) or "none"
        raise ValueError(f"experiment must be one with records ({known}), got {', '.join(unknown)}")
    written = {}
    for name in sorted(found):
        if experiments and name not in experiments:
            continue
        path = data_file(results, name)
        earlier = read_data(path) if path.exists() and not fresh else []
        runs, conflicts = merge([*found[name], *earlier])
        write_data(path, runs)
        written[name] = len(runs)
        warnings += conflicts + fingerprint_warning(name, runs)
    return Collected(written, warnings)


def _gather(roots: Sequence[Path], required: bool) -> tuple[dict[str, list[Run]], list[str]]:
    """The runs below the roots by experiment, and a line for each record that cannot be read."""
    found: dict[str, list[Run]] = {}
    warnings = []
    for root in roots:
        if required and not root.is_dir():
            raise ValueError(f"roots must be folders that are there, got {root}")
        for folder in find_records(root):
            try:
                run = read_record(folder)
            except ValueError as error:
                warnings.append(f"left out: {error}")
                continue
            found.setdefault(str(run.info["experiment"]), []).append(run)
    return found, warnings
