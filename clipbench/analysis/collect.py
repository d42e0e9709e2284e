"""Records → results/data/<experiment>.parquet: all runs of an experiment in one file, from one or several machines.

Collecting adds to a file and never takes a run away that it cannot see. Of two records of one run the one of the
later ATTEMPT is kept (a number in the record, not a time of day), so a failure that is newer than a success shows.
Trials of a tuning keep their final metrics and at most 20 points of each curve. What is published of a record is
listed in `fields.py`. The same runs always give the same bytes, in whatever order they come.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import pyarrow as pa
import yaml

from clipbench.analysis.fields import public
from clipbench.analysis.load import experiments as collected_experiments
from clipbench.runs.archive import (
    METRIC_COLUMNS,
    Run,
    data_file,
    holds_runs,
    places,
    read_data,
    read_mapping,
    read_table,
    selection_file,
    write_data,
)
from clipbench.runs.equal import representative
from clipbench.runs.files import atomic_text, atomic_write, lock
from clipbench.runs.parquet import read_frame
from clipbench.runs.record import FINISHED, STATUSES, parse_info

CURVE_POINTS = 20  # of each curve of a tuning's trial
SESSION = ["experiment", "device", "threads"]  # what one calibration measured together


class Collected(NamedTuple):
    """What `collect` wrote (experiment → number of runs), and what its user should know, one line each."""

    runs: dict[str, int]
    warnings: list[str]


def read_record(folder: Path) -> Run:
    """The record in `folder`. Raises ValueError, naming the file, where one is missing, cut off or not a record."""
    path = folder / "run.json"
    try:
        info = parse_info(path.read_bytes())
    except (OSError, ValueError) as error:
        why = str(error) if type(error).__name__ == "OddEntry" else type(error).__name__
        raise ValueError(f"{path} cannot be read ({why})") from error
    if info["status"] not in STATUSES:
        raise ValueError(f"{path} must have a status of {', '.join(STATUSES)}, got {info['status']}")
    try:
        config = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8")) or {}
    except (OSError, yaml.YAMLError, ValueError) as error:
        raise ValueError(f"{folder / 'config.yaml'} cannot be read ({type(error).__name__})") from error
    if not isinstance(config, Mapping):
        raise ValueError(f"{folder / 'config.yaml'} cannot be read (it must hold a mapping)")
    path = folder / "metrics.parquet"
    try:
        metrics = read_frame(path)[METRIC_COLUMNS] if path.exists() else pd.DataFrame(columns=METRIC_COLUMNS)
    except (OSError, KeyError, pa.ArrowException) as error:
        raise ValueError(f"{path} cannot be read ({type(error).__name__})") from error
    return Run(_flat(public(info, config)), thinned(metrics.reset_index(drop=True), str(info["role"])))


def _flat(info: Mapping[str, Any]) -> dict[str, Any]:
    """Mappings and lists become JSON text with sorted keys; numbers and words stay."""
    return {
        key: json.dumps(value, sort_keys=True, ensure_ascii=False) if isinstance(value, Mapping | list) else value
        for key, value in info.items()
    }


def thinned(metrics: pd.DataFrame, role: str) -> pd.DataFrame:
    """A tuning trial's rows at no more than 20 steps of each curve, its last among them, without per-layer figures."""
    if role != "tune":
        return metrics
    kept = metrics[~metrics["metric"].astype(str).str.contains("/", regex=False)]
    parts = []
    for _, curve in kept.groupby(["split", "metric"], sort=False):
        count = len(curve)
        places = sorted({round(i * (count - 1) / (CURVE_POINTS - 1)) for i in range(CURVE_POINTS)})
        parts.append(curve if count <= CURVE_POINTS else curve.iloc[places])
    return pd.concat(parts).sort_index().reset_index(drop=True) if parts else kept


def find_records(root: Path) -> Iterator[Path]:
    """The record folders below `root`, a results folder or a folder of runs. Folders put aside are passed over.

    A record's folder is named by its run id; anything else (a broken or a stale record moved aside) is no record.
    """
    base = root / "runs" if (root / "runs").is_dir() else root
    for path in sorted(base.rglob("run.json")):
        try:
            named = json.loads(path.read_text(encoding="utf-8")).get("run_id")
        except (OSError, ValueError, AttributeError):
            named = path.parent.name  # cannot be read: `read_record` says so
        if named == path.parent.name or not isinstance(named, str):
            yield path.parent


def _differences(left: Run, right: Run) -> list[str]:
    """What two records of one run id differ in: entries of run.json, and "metrics". Empty for copies of one record."""
    keys = dict.fromkeys([*left.info, *right.info])
    differing = [key for key in keys if not _equal(left.info.get(key), right.info.get(key))]
    rows = [[*zip(*(run.metrics[c].tolist() for c in METRIC_COLUMNS), strict=True)] for run in (left, right)]
    same = len(rows[0]) == len(rows[1]) and all(
        _equal(x, y) for pair in zip(*rows, strict=True) for x, y in zip(*pair, strict=True)
    )
    return differing + ([] if same else ["metrics"])


def _equal(left: Any, right: Any) -> bool:
    """Equal, or both without a value: a file may give back NaN as null."""
    return bool(left == right or (pd.isna(left) and pd.isna(right)))


def _rank(run: Run) -> tuple[Any, ...]:
    """What decides between two records of one run: ended before under way, then the attempt, then how far it came.

    The digest at the end decides nothing that matters, and the same everywhere.
    """
    info = run.info
    ended, done = info["status"] != "running", info["status"] in FINISHED
    text = json.dumps({key: str(info[key]) for key in sorted(info) if info[key] is not None})
    digest = hashlib.sha256(text.encode()).hexdigest()
    return ended, int(info.get("attempt") or 0), done, int(info.get("steps_done") or 0), digest


def merge(runs: Iterable[Run]) -> tuple[list[Run], list[str]]:
    """One run per run id: copies count once; of two that differ the one of higher `_rank` is kept.

    Returns the runs in a fixed order, and a line for each two of one attempt that both ended and differ.
    """
    kept: dict[str, Run] = {}
    conflicts = []
    for run in runs:
        name = str(run.info["run_id"])
        other = kept.setdefault(name, run)
        if other is run or not (differences := _differences(run, other)):
            continue
        kept[name] = max(run, other, key=_rank)
        if _rank(run)[:3] == _rank(other)[:3] and run.info["status"] in FINISHED:
            label = f"{run.info['method']}, seed {run.info['seed']}"
            what = ", ".join(differences[:5]) + (", …" if len(differences) > 5 else "")
            when = str(kept[name].info.get("finished"))
            conflicts.append(f"{run.info['experiment']}: two records of {name} ({label}) differ in {what}: kept {when}")
    return sorted(kept.values(), key=_order), conflicts


def _order(run: Run) -> tuple[str, ...]:
    numbers = (f"{run.info.get(key) if run.info.get(key) is not None else -1:>12}" for key in ("seed", "trial"))
    return (str(run.info["role"]), str(run.info["method"]), *numbers, str(run.info["run_id"]))


def fingerprint_warning(experiment: str, runs: Sequence[Run]) -> list[str]:
    """A line for each method whose runs come from several versions of the code."""
    by_method: dict[str, Counter[str]] = {}
    for run in runs:
        code = representative(str(run.info.get("fingerprint")))
        names = ", ".join(str(run.info.get(key)) for key in ("method", "optimizer", "dataset", "model"))
        by_method.setdefault(names, Counter())[code] += 1
    return [
        f"{experiment}: runs of one method ({method}) by {len(counts)} versions of the code "
        f"({', '.join(f'{count} by {name[:12]}' for name, count in counts.most_common())})"
        for method, counts in by_method.items()
        if len(counts) > 1
    ]


def collect(results: Path, roots: Sequence[Path] = (), experiments: Sequence[str] = ()) -> Collected:
    """Add the records below `roots` (default: `results` itself) to results/data/<experiment>.parquet.

    `experiments` limits what is written. Several collects at once wait for each other. Raises ValueError for a root or
    an experiment that is not there, RecordError where nothing can be written.
    """
    found, warnings = _gather(roots or [results], required=bool(roots))
    unknown = [name for name in experiments if name not in found and not data_file(results, name).exists()]
    if unknown:
        known = sorted({*found, *collected_experiments(results)})
        near = get_close_matches(unknown[0], known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(known) or 'none'}"
        raise ValueError(f"experiment must be one with records, got {', '.join(unknown)} ({hint})")
    written = {}
    for name in sorted(found):
        if experiments and name not in experiments:
            continue
        runs, conflicts = add(data_file(results, name), found[name])
        written[name] = len(runs)
        warnings += conflicts + fingerprint_warning(name, runs)
    return Collected(written, warnings)


def add(path: Path, new: Sequence[Run]) -> tuple[list[Run], list[str]]:
    """Add runs to a collected file: (all that it holds then, lines on conflicts)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with lock(path.parent / f".{path.name}.lock"):
        runs, conflicts = merge([*(read_data(path) if path.exists() else []), *new])
        write_data(path, runs)
    return runs, conflicts


def bring(results: Path, experiment: str, others: Sequence[Path] = ()) -> int:
    """Add what `others` (results folders), and then an installed package, have collected of an experiment.

    Its runs, what its tuning selected where one's own says nothing of a method, and its calibrations of machines that
    have none here. Returns how many runs there are then, 0 where nobody has any. Raises ValueError for a folder that
    is not there.
    """
    if away := [other for other in others if not other.is_dir()]:
        raise ValueError(f"data must be folders that are there, got {away[0]}")
    count = 0
    for other in [*others, *places(results)[1:]]:
        if not (found := data_file(other, experiment)).exists() or other.resolve() == results.resolve():
            continue
        count = len(add(data_file(results, experiment), read_data(found))[0])
        theirs, ours = selection_file(other, experiment), selection_file(results, experiment)
        if theirs.exists():
            known = read_mapping(ours) if ours.exists() else {}
            atomic_text(ours, json.dumps(dict(sorted((read_mapping(theirs) | known).items())), indent=1) + "\n")
        _bring_calibration(results, other, experiment)
    return count


def _bring_calibration(results: Path, other: Path, experiment: str) -> None:
    there, here = (folder / "data" / "calibration.parquet" for folder in (other, results))
    if not there.exists():
        return
    rows = read_table(there)
    rows = rows[rows["experiment"] == experiment]
    if here.exists():
        known = read_table(here)
        measured = set(known[SESSION].itertuples(index=False, name=None))
        rows = rows[[key not in measured for key in rows[SESSION].itertuples(index=False, name=None)]]
        rows = pd.concat([known, rows], ignore_index=True) if len(rows) else rows
    if len(rows):
        atomic_write(here, lambda part: rows.reset_index(drop=True).to_parquet(part))


def merge_files(ours: Path, theirs: Path) -> list[str]:
    """Git's merge of two versions of a collected file, into `ours`: the union by run id; lines on conflicts.

    Raises ValueError where one of them is no collected file, RecordError where it cannot be read.
    """
    for path in (ours, theirs):
        if not holds_runs(path):
            raise ValueError(f"a file to merge must hold collected runs, got {path.name}")
    runs, conflicts = merge([*read_data(ours), *read_data(theirs)])
    write_data(ours, runs)
    return conflicts


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
