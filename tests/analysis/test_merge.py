"""Which of several records of one run is kept, in which order runs lie in a file, and what of a trial's curves."""

from __future__ import annotations

import json
from typing import Any

import pandas as pd
import pytest

from clipbench.analysis import collect
from clipbench.analysis.collect import CURVE_POINTS, fingerprint_warning, merge, merge_files, read_record, thinned
from clipbench.runs.archive import METRIC_COLUMNS, Run, read_data, write_data
from tests.analysis.synthetic import write_run


def one(value: float = 0.5, **info: Any) -> Run:
    common = {"run_id": "a", "experiment": "toy/cpu", "method": "sgd", "seed": 0, "role": "single", "status": "ok",
              "attempt": 1, "trial": None, "finished": "noon", "config": "{}"}  # fmt: skip
    return Run(common | info, pd.DataFrame([[10, 1.0, 160, 0.1, "train", "loss", value]], columns=METRIC_COLUMNS))


@pytest.mark.parametrize(
    ("kept", "lost"),
    [
        ({"status": "failed", "attempt": 1}, {"status": "running", "attempt": 2}),
        ({"status": "failed", "attempt": 2}, {"status": "ok", "attempt": 1}),
        ({"status": "ok", "attempt": 2}, {"status": "diverged", "attempt": 1}),
        ({"status": "ok", "attempt": 1}, {"status": "failed", "attempt": 1, "steps_done": 99}),
        ({"status": "running", "attempt": 2, "steps_done": 1}, {"status": "running", "attempt": 1, "steps_done": 9}),
        ({"status": "running", "steps_done": 9}, {"status": "running", "steps_done": 8}),
        ({"status": "running", "steps_done": 1}, {"status": "running", "steps_done": None}),
        ({"status": "running", "attempt": 1}, {"status": "running", "attempt": None, "steps_done": 9}),
    ],
)
def test_of_two_records_of_a_run_one_is_kept_in_either_order(kept: dict[str, Any], lost: dict[str, Any]) -> None:
    for pair in ((kept, lost), (lost, kept)):
        runs, conflicts = merge(one(**info) for info in pair)
        assert [{key: run.info[key] for key in kept} for run in runs] == [kept]
        assert conflicts == []


def test_a_step_more_decides_whatever_the_digest() -> None:
    """Among many, so that no digest's luck hides what decides."""
    for number in range(12):
        runs, _ = merge([one(status="running", steps_done=1, note=number), one(status="running", note=number)])
        assert runs[0].info.get("steps_done") == 1


def test_two_that_ended_alike_and_differ_are_told_with_what_differs() -> None:
    first = one(0.5, finished="noon", a=1, b=1, c=1, d=1)
    for other, what in (
        (one(0.25, finished="noon", a=1, b=1, c=1, d=1), "metrics"),
        (one(0.5, finished="noon", a=2, b=1, c=1, d=None), "a, d"),
        (one(0.25, finished="night", a=2, b=2, c=2, d=2), "finished, a, b, c, d, …"),
        (one(0.25, finished="noon", a=2, b=2, c=2, d=2), "a, b, c, d, metrics"),
    ):
        told = []
        for pair in ((first, other), (other, first)):
            (run,), (line,) = merge(pair)
            when = run.info["finished"]
            assert line == f"toy/cpu: two records of a (sgd, seed 0) differ in {what}: kept {when}"
            told.append(run.info)
        assert told[0] == told[1]


def test_copies_are_no_conflict_also_where_nothing_is_written_in_two_ways() -> None:
    left, right = one(float("nan"), error=None, x=float("nan")), one(float("nan"), x=None)
    assert merge([left, right, left]) == ([left], [])
    shorter = Run(left.info, left.metrics.iloc[:0])
    assert merge([left, shorter])[1][0].startswith("toy/cpu: two records of a (sgd, seed 0) differ in metrics")


def test_two_files_are_merged_into_the_first(tmp_path: Any) -> None:
    ours, theirs = tmp_path / "ours.parquet", tmp_path / "theirs.parquet"
    write_data(ours, [one(seed=0), one(run_id="b", seed=1)])
    write_data(theirs, [one(0.25, seed=0), one(run_id="c", seed=2)])
    before = theirs.read_bytes()
    (line,) = merge_files(ours, theirs)
    assert line.startswith("toy/cpu: two records of a (sgd, seed 0) differ in metrics: kept noon")
    assert [run.info["run_id"] for run in read_data(ours)] == ["a", "b", "c"]
    assert theirs.read_bytes() == before
    pd.DataFrame({"method": ["sgd"]}).to_parquet(theirs)
    with pytest.raises(ValueError, match=r"^a file to merge must hold collected runs, got theirs.parquet$"):
        merge_files(ours, theirs)


def test_runs_lie_in_an_order_of_their_own() -> None:
    order = [
        {"role": "final", "method": "z", "seed": 9},
        {"role": "single", "method": "a", "seed": 2}, {"role": "single", "method": "a", "seed": 10, "run_id": "b"},
        {"role": "single", "method": "a", "seed": 10, "run_id": "c"}, {"role": "single", "method": "b", "seed": 0},
        {"role": "tune", "method": "a", "seed": 100, "trial": 9},
        {"role": "tune", "method": "a", "seed": 100, "trial": 11},
    ]  # fmt: skip
    runs = [one(**({"run_id": f"r{place}"} | info)) for place, info in enumerate(order)]
    assert [run.info["run_id"] for run in merge(runs[::-1])[0]] == [run.info["run_id"] for run in runs]


def test_of_a_trial_s_curves_twenty_points_are_kept_and_no_layers() -> None:
    rows = [[step, step / 100, step, 0.1 * step, "train", "loss", step] for step in range(1, 101)]
    rows += [[step, step / 100, step, 0.1 * step, "validation", "loss", -step] for step in range(5, 101, 5)]
    rows += [[step, step / 100, step, 0.1 * step, "train", "layer/norm", 1.0] for step in range(1, 101)]
    table = pd.DataFrame(sorted(rows, key=lambda row: row[0]), columns=METRIC_COLUMNS)
    pd.testing.assert_frame_equal(thinned(table, "final"), table)
    found = thinned(table, "tune")
    assert list(found.columns) == METRIC_COLUMNS
    assert set(found["metric"]) == {"loss"}
    assert found.index.tolist() == list(range(len(found)))
    assert found["step"].is_monotonic_increasing
    train, validation = (found[found["split"] == split]["step"].tolist() for split in ("train", "validation"))
    assert validation == list(range(5, 101, 5)), "twenty are left whole"
    assert train == [1 + round(i * 99 / 19) for i in range(20)]
    assert len(train) == CURVE_POINTS == 20
    assert thinned(table.iloc[:0], "tune").empty


def test_a_damaged_record_does_not_hide_those_after_it(tmp_path: Any) -> None:
    folders = sorted(write_run(tmp_path, seed=seed) for seed in range(3))
    (folders[0] / "run.json").write_text("{")
    done = collect(tmp_path)
    assert done.runs == {"toy/cpu": 2}
    assert done.warnings == [f"left out: {folders[0] / 'run.json'} cannot be read (JSONDecodeError)"]


def test_experiments_that_are_not_asked_for_are_passed_over(tmp_path: Any) -> None:
    for name in ("a", "b", "c"):
        write_run(tmp_path, experiment=name)
    assert collect(tmp_path, experiments=["b", "c"]).runs == {"b": 1, "c": 1}
    assert collect(tmp_path).runs == {"a": 1, "b": 1, "c": 1}
    with pytest.raises(ValueError, match=r"^experiment must be one with records, got x, y \(there are a, b, c\)$"):
        collect(tmp_path, experiments=["x", "b", "y"])
    with pytest.raises(ValueError, match=r"got x \(there are none\)$"):
        collect(tmp_path / "empty", experiments=["x"])


def test_versions_of_the_code_are_counted_by_method_and_setting() -> None:
    def run(method: str, code: str, optimizer: str = "sgd") -> Run:
        return one(method=method, fingerprint=code, optimizer=optimizer, dataset="toy", model="mlp")

    runs = [run("sgd", "a" * 16), run("sgd", "a" * 16), run("sgd", "b" * 16), run("norm", "c" * 16),
            run("norm", "d" * 16, "adam")]  # fmt: skip
    assert fingerprint_warning("toy/cpu", runs) == [
        f"toy/cpu: runs of one method (sgd, sgd, toy, mlp) by 2 versions of the code (2 by {'a' * 12}, 1 by {'b' * 12})"
    ]
    assert fingerprint_warning("toy/cpu", runs[2:]) == []


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("run.json", "{", "run.json cannot be read (JSONDecodeError)"),
        ("run.json", "[]", "run.json cannot be read (it must hold a mapping, got list)"),
        ("run.json", None, "run.json cannot be read (FileNotFoundError)"),
        ("config.yaml", "a: [", "config.yaml cannot be read (ParserError)"),
        ("config.yaml", "- 1", "config.yaml cannot be read (it must hold a mapping)"),
        ("config.yaml", None, "config.yaml cannot be read (FileNotFoundError)"),
        ("metrics.parquet", "PAR1", "metrics.parquet cannot be read (ArrowInvalid)"),
    ],
)
def test_why_a_record_cannot_be_read(tmp_path: Any, name: str, content: str | None, why: str) -> None:
    path = write_run(tmp_path) / name
    path.unlink()
    if content is not None:
        path.write_text(content)
    with pytest.raises(ValueError, match="cannot be read") as error:
        read_record(path.parent)
    assert str(error.value) == f"{path.parent}/{why}"


def test_a_record_with_an_empty_config_or_without_metrics_is_one(tmp_path: Any) -> None:
    folder = write_run(tmp_path, status="failed")
    (folder / "config.yaml").write_text("")
    (folder / "metrics.parquet").unlink()
    run = read_record(folder)
    assert json.loads(run.info["config"]) == {}
    (folder / "config.yaml").write_text("method: {name: é, a: 1}\n", encoding="utf-8")
    assert read_record(folder).info["config"] == '{"method": {"a": 1, "name": "é"}}', "sorted, and in plain letters"
    assert list(run.metrics.columns) == METRIC_COLUMNS
    assert run.metrics.empty
    pd.DataFrame({"step": [1]}).to_parquet(folder / "metrics.parquet")
    with pytest.raises(ValueError, match=r"metrics.parquet cannot be read \(KeyError\)$"):
        read_record(folder)
