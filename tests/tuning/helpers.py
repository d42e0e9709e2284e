"""Small tunings for the tests, and what they left."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from typing import Any

from clipbench import tune
from tests.runs.helpers import values

SMALL = [
    "experiment=heavy_tailed_mlp/smoke", "device=cpu", "threads=1", "steps=40", "eval_every=20", "log_every=10",
    "checkpoint_every=10", "dataset.samples=400", "dataset.validation=100", "dataset.test=100",
]  # fmt: skip


def arguments(folder: Path, *more: str) -> list[str]:
    """A command line of clipbench.tune whose results and tuned settings lie in `folder`."""
    return [*SMALL, f"paths.results={folder}/results", f"paths.tuned={folder}/tuned", *more]


def tuned(folder: Path, *more: str) -> None:
    tune.main(arguments(folder, *more))


def records(folder: Path) -> list[tuple[dict[str, Any], Path]]:
    """(run.json, folder) of every record below, wherever it lies."""
    return [(json.loads(path.read_text()), path.parent) for path in sorted(folder.rglob("run.json"))]


def contents(folder: Path) -> dict[tuple[Any, ...], Any]:
    """What a tuning left, without times: status and metric rows by method, role, trial and seed."""
    found = {}
    for info, place in records(folder):
        key = (info["method"], info["role"], info["trial"], info["seed"])
        assert key not in found, f"two records of {key}"
        found[key] = (info["status"], values(place))
    return found


def settings(folder: Path) -> dict[str, str]:
    """The text of every generated file, by method."""
    return {path.stem: path.read_text() for path in (folder / "tuned").rglob("*.yaml")}


def states(database: Path) -> list[tuple[str, int, str]]:
    """(study, index, state) of every trial in the storage that was begun, read without Optuna."""
    query = """
        select s.study_name, a.value_json, t.state from trials t
        join studies s on s.study_id = t.study_id
        join trial_user_attributes a on a.trial_id = t.trial_id and a.key = 'slot'
        where t.state <> 'WAITING'
    """
    with sqlite3.connect(database) as connection:
        return sorted((name, int(index), state) for name, index, state in connection.execute(query))
