"""The table of rules: what each method of conf/method does, where it comes from, and what a step of it costs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pandas as pd
import yaml

from clipbench.analysis.claims.judged import claims_file
from clipbench.analysis.leaderboard import finals, listed
from clipbench.analysis.load import experiments, load, load_calibration
from clipbench.analysis.tables import NONE, Table
from clipbench.wording import amount

FIELDS = ("rule", "paper", "acts_on", "state", "defaults_from")


def rules(path: Path | None = None) -> dict[str, dict[str, str]]:
    """Method → its entry in conf/rules.yaml (`path`: another file), then the methods that have none, with dashes.

    Raises ValueError where an entry lacks a field.
    """
    path = path or claims_file().with_name("rules.yaml")
    found: dict[str, dict[str, str]] = yaml.safe_load(path.read_text(encoding="utf-8"))
    unsaid = sorted({file.stem for file in path.with_name("method").glob("*.yaml")} - set(found))
    found |= {method: dict.fromkeys(FIELDS, NONE) for method in unsaid}
    for method, entry in found.items():
        if missing := [field for field in FIELDS if field not in entry]:
            raise ValueError(f"{method} must have the field {missing[0]} in conf/rules.yaml")
    return found


def rules_table(results: Path, size: str = "cpu") -> Table:
    """Every rule, with the step time of the leaderboard's tasks as a ratio to SGD's where it was calibrated."""
    known = experiments(results)
    costs, notes = {}, []
    for name in [f"{task.name}/{size}" for task in listed()]:
        if name not in known:
            continue
        table = load_calibration(results, name, finals(load(results, name)))
        if not table.empty:
            costs[name] = {str(row["method"]): row for row in table.reset_index().to_dict("records")}
            notes.append(_measured(name, table))
    columns = ["method", *(field.replace("_", " ") for field in FIELDS), *(f"step time, {name}" for name in costs)]
    rows = [
        [f"`{method}`", *(entry[field] for field in FIELDS), *(_cost(cost.get(method)) for cost in costs.values())]
        for method, entry in rules().items()
    ]
    return Table("Rules", columns, rows, notes)


def _cost(row: Mapping[object, float] | None) -> str:
    return NONE if row is None else f"{row['ratio']:.2f} [{row['ratio_low']:.2f}, {row['ratio_high']:.2f}]"


def _measured(name: str, table: pd.DataFrame) -> str:
    """How a column was measured, and how long SGD's step is, without which a ratio says little."""
    row = table.iloc[0]
    step = 1000 * float(table["step_seconds"].to_dict()["sgd"])
    return (
        f"Step time, {name}: ratio to SGD's {step:.3g} ms [95 % interval], {int(table['n'].min())} interleaved "
        f"rounds on {row['device']}, {amount(int(row['threads']), 'thread')}."
    )
