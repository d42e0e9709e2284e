"""Which rows of a calibration hold for runs: those of the same device, threads, precision, batch, code, work, tuning.

A step time of another machine, or of other settings, is another number; where it does not fit, raw seconds are shown
and why is said.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from operator import eq
from typing import Any

import pandas as pd

from clipbench.runs.equal import same
from clipbench.timing.work import work
from clipbench.wording import amount

# What a row must share with its method's runs beside the machine: its column, and what a note calls it.
SHARED = {
    "precision": "precision", "samples_per_step": "number of samples per step", "fingerprint": "code",
    "work": "model, data or batch", "tuned": "tuned settings",
}  # fmt: skip


def matching(table: pd.DataFrame, runs: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """The rows of one experiment's calibration that hold for `runs` (as run.json has them), and a note.

    The machine is the one most runs were made on; of several, that of the latest calibration, then the first by name.
    A method's row holds where precision, samples per step, code, work (see clipbench.timing.work) and whether settings
    are tuned are those of ALL its runs; a row that was measured before work was noted holds where its method's runs
    share one. Codes that count as the same (see clipbench.runs.equal) are named in the note. It also says which machine
    a tie was decided for and which rows were left out; it is empty otherwise.
    """
    kinds = [_kind(run) for run in runs.to_dict("records")]
    counts = Counter((kind["device"], kind["threads"]) for kind in kinds)
    sessions = {
        machine: str(group["measured"].max()) if "measured" in group else ""
        for machine, group in table.groupby(["device", "threads"])
    }
    known = {machine: counts[machine] for machine in sessions if counts[machine]}
    if not known:
        used = ", ".join(sorted({f"{device}, {amount(threads, 'thread')}" for device, threads in counts}, key=str))
        return table.iloc[:0], f"No calibration was made on the runs' machine ({used or 'no runs'})."
    most = [machine for machine, count in known.items() if count == max(known.values())]
    latest = [machine for machine in most if sessions[machine] == max(sessions[m] for m in most)]
    device, threads = min(latest, key=str)
    notes = []
    if len(most) > 1:
        others = len(most) - 1
        notes.append(
            f"Calibrated on {device}, {amount(threads, 'thread')}: "
            f"{amount(others, 'other machine')} made as many runs, this calibration is newer."
        )
    rows = table[(table["device"] == device) & (table["threads"] == threads)]
    kept, later, unlike = [], [], {}  # type: tuple[list[Any], list[str], dict[str, list[str]]]
    for index, row in rows.iterrows():
        own = [kind for kind in kinds if kind["method"] == row["method"]]
        why = _mismatch(row.to_dict(), own)
        if not why and any(kind["fingerprint"] != row.get("fingerprint") for kind in own):
            later.append(str(row["method"]))
        if why:
            unlike.setdefault(why, []).append(str(row["method"]))
        else:
            kept.append(index)
    for why, methods in unlike.items():
        verb, other = "is" if len(methods) == 1 else "are", "other" if why.endswith("s") else "another"
        notes.append(f"The calibration{'s' * (verb == 'are')} of {', '.join(methods)} {verb} of {other} {why}.")
    if later:
        notes.append(
            f"Calibrated with code that gives the same numbers as the runs' (conf/equal.yaml), not with theirs: "
            f"{', '.join(later)}."
        )
    return rows.loc[kept], " ".join(notes)


def _kind(run: Mapping[Any, Any]) -> dict[str, Any]:
    """What a run has to share with its calibration."""
    device = run.get("device") or {}
    said = run.get("tuned")
    return {
        "method": run.get("method"), "device": device.get("name"), "threads": device.get("threads"),
        "precision": run.get("precision"), "samples_per_step": run.get("samples_per_step"),
        "fingerprint": run.get("fingerprint"), "work": work(run.get("config") or {}),
        "tuned": run.get("role") == "final" or (isinstance(said, str) and said != "none"),
    }  # fmt: skip


def _mismatch(row: Mapping[str, Any], kinds: list[dict[str, Any]]) -> str:
    """In what a row differs from a run of its method; empty where it holds for all of them."""
    for column, name in SHARED.items():
        alike = same if column == "fingerprint" else eq
        said = row.get(column)
        if column == "work" and kinds and not isinstance(said, str):
            said = kinds[0]["work"]
        if not all(alike(kind[column], said) for kind in kinds):
            return name
    return ""
