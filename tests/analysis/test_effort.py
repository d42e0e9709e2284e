"""What the experiments took: counts, added hours, and the machines."""

from __future__ import annotations

from pathlib import Path

from clipbench.analysis import collect
from clipbench.analysis.page.effort import COLUMNS, effort_table
from tests.analysis.synthetic import write_run


def test_runs_trials_members_hours_and_machines_of_each_experiment(tmp_path: Path) -> None:
    for seed, wall in enumerate((600.0, 1200.0, 1800.0)):
        write_run(tmp_path, "sgd", seed, "one/cpu", seconds={"train": 1.0, "wall": wall})
    write_run(tmp_path, "sgd", 9, "two/cpu", "tune", trial=0, seconds={"train": 1.0, "wall": 36.0})
    device = {"name": "Other CPU", "type": "cpu", "threads": 1}
    write_run(tmp_path, "sgd", 9, "two/cpu", "final", seconds={"train": 1.0}, together=4, device=device)
    collect(tmp_path)
    rows = {row[0]: dict(zip(COLUMNS, row, strict=True)) for row in effort_table(tmp_path).rows}
    one, two = rows["one/cpu"], rows["two/cpu"]
    assert (one["runs"], one["trials among them"], one["went together"], one["hours in all"]) == ("3", "0", "0", "1")
    assert one["seconds of a run"] == "1200 [900, 1500]"
    assert (two["runs"], two["trials among them"], two["went together"], two["hours in all"]) == ("2", "1", "1", "0.01")
    assert two["machine"].split("; ")[-1] == "Test CPU, 2 threads"
    assert "Other CPU, 1 thread" in two["machine"]
