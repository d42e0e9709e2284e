"""Records → one file per experiment: complete, anonymous, merged from several machines, the same bytes every
time."""

from __future__ import annotations

import json
import math
import shutil

import pandas as pd
import pytest

from clipbench.analysis import collect, load
from clipbench.analysis.collect import data_file, find_records, read_data, read_record, scrub
from tests.analysis.synthetic import write_comparison, write_run


def edit(folder, **entries):
    path = folder / "run.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))


def test_collect_puts_all_runs_of_an_experiment_into_one_file(tmp_path):
    write_comparison(tmp_path, seeds=2)
    write_run(tmp_path, "sgd", 0, "single")
    done = collect(tmp_path)
    assert done.runs == {"single": 1, "toy/cpu": 6}
    assert done.warnings == []
    assert sorted(p.name for p in (tmp_path / "data").iterdir()) == ["single.parquet", "toy__cpu.parquet"]


def test_every_metric_row_and_run_entry_survives(tmp_path):
    folder = write_run(tmp_path, "ps_clip", 3, status="diverged")
    record = json.loads((folder / "run.json").read_text())
    collect(tmp_path)
    experiment = load(tmp_path, "toy/cpu")
    expected = pd.read_parquet(folder / "metrics.parquet")
    pd.testing.assert_frame_equal(experiment.metrics.drop(columns="run_id"), expected, check_dtype=False)
    assert math.isnan(expected["value"].iloc[-3:].max()), "a diverged run ends in NaN, and NaN is kept"
    run = experiment.runs.iloc[0]
    for key in ("seed", "status", "trial", "steps", "train_step_seconds", "fingerprint"):
        assert run[key] == record[key] or (record[key] is None and pd.isna(run[key]))
    for key in ("seconds", "device", "versions", "data"):
        assert run[key] == record[key]
    assert run["lr"] == 0.1
    assert run["config"]["method"] == {"name": "ps_clip"}


def test_nothing_tells_of_the_owner(tmp_path):
    folder = write_run(tmp_path, status="failed", error="FileNotFoundError: /home/alice/d/cifar.tar.gz is gone")
    collect(tmp_path)
    content = data_file(tmp_path, "toy/cpu").read_bytes()
    table = pd.read_parquet(data_file(tmp_path, "toy/cpu"))
    text = content.decode("latin-1") + table.to_json()
    assert "alice" in (folder / "run.json").read_text()
    assert "alice" not in text
    assert "/home" not in text
    assert table["error"].iloc[0] == "FileNotFoundError: …/cifar.tar.gz is gone"


def test_scrub_leaves_addresses_and_fractions_alone():
    for text in ("https://example.org/data/file.gz", "train/loss", "1/2 and 3/4", "a / b", "~/x/y"):
        assert scrub(text) == text
    assert scrub({"a": ["/home/al ice/x.txt"], "root": "/r"}) == {"a": ["…/x.txt"]}
    assert scrub(r"C:\Users\alice\x.txt") == "…/x.txt"


def test_a_failed_run_without_metrics_is_counted(tmp_path):
    folder = write_run(tmp_path, status="failed")
    (folder / "metrics.parquet").unlink()
    write_run(tmp_path, seed=1)
    collect(tmp_path)
    experiment = load(tmp_path, "toy/cpu")
    assert sorted(experiment.runs["status"]) == ["failed", "ok"]
    assert experiment.metrics["run_id"].nunique() == 1


def test_the_same_records_give_the_same_bytes(tmp_path):
    write_comparison(tmp_path, seeds=2)
    collect(tmp_path)
    first = data_file(tmp_path, "toy/cpu").read_bytes()
    collect(tmp_path)
    assert data_file(tmp_path, "toy/cpu").read_bytes() == first
    other = tmp_path / "other"
    shutil.copytree(tmp_path / "runs", other / "runs")
    collect(other, fresh=True)
    assert data_file(other, "toy/cpu").read_bytes() == first
    assert not list(tmp_path.rglob("*.part"))


def test_several_machines_are_merged(tmp_path):
    one, two, result = tmp_path / "one", tmp_path / "two", tmp_path / "result"
    for seed in range(3):
        write_run(one, seed=seed)
    for seed in range(2, 5):
        write_run(two, seed=seed)  # seed 2 is a copy
    done = collect(result, [one, two / "runs"])
    assert done.runs == {"toy/cpu": 5}
    assert done.warnings == []


def test_conflicts_are_reported_and_the_newer_is_kept(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    write_run(one, seed=0, train_step_seconds=1.0, finished="2026-01-01T00:00:00+00:00")
    write_run(two, seed=0, train_step_seconds=2.0, finished="2026-02-01T00:00:00+00:00")
    for roots in ([one, two], [two, one]):
        result = tmp_path / roots[0].name / "result"
        done = collect(result, roots)
        assert len(done.warnings) == 1
        assert "train_step_seconds" in done.warnings[0]
        assert "kept 2026-02-01" in done.warnings[0]
        assert load(result, "toy/cpu").runs["train_step_seconds"].tolist() == [2.0]


def test_different_metrics_of_one_run_id_are_a_conflict(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    write_run(one)
    folder = write_run(two)
    table = pd.read_parquet(folder / "metrics.parquet")
    table.loc[0, "value"] += 1e-9
    table.to_parquet(folder / "metrics.parquet")
    assert "differ in metrics" in collect(tmp_path, [one, two]).warnings[0]


@pytest.mark.parametrize("unfinished", ["running", "failed"])
def test_a_finished_record_wins_over_an_unfinished_one_without_a_word(tmp_path, unfinished):
    one, two = tmp_path / "one", tmp_path / "two"
    write_run(one, status="ok")
    folder = write_run(two, status="ok")
    edit(folder, status=unfinished, finished="2030-01-01T00:00:00+00:00")
    done = collect(tmp_path, [two, one])
    assert done.warnings == []
    assert load(tmp_path, "toy/cpu").runs["status"].tolist() == ["ok"]


def test_runs_collected_elsewhere_stay_unless_fresh(tmp_path):
    first = write_run(tmp_path, seed=0)
    collect(tmp_path)
    shutil.rmtree(first)
    write_run(tmp_path, seed=1)
    assert collect(tmp_path).runs == {"toy/cpu": 2}
    assert collect(tmp_path, fresh=True).runs == {"toy/cpu": 1}


def test_read_data_gives_back_what_read_record_gave(tmp_path):
    folder = write_run(tmp_path, status="diverged", trial=None)
    write_run(tmp_path, seed=1, role="tune", trial=4)
    collect(tmp_path)
    found = {run.info["run_id"]: run for run in read_data(data_file(tmp_path, "toy/cpu"))}
    run, back = read_record(folder), found[folder.name]
    assert {k: v for k, v in back.info.items() if v is not None} == {k: v for k, v in run.info.items() if v is not None}
    pd.testing.assert_frame_equal(back.metrics.astype(object), run.metrics.astype(object), check_dtype=False)


def test_mixed_code_versions_are_warned_of(tmp_path):
    for seed in range(3):
        write_run(tmp_path, seed=seed, fingerprint="aaaa" if seed else "bbbb")
    assert collect(tmp_path).warnings == ["toy/cpu: runs of 2 versions of the code (2 by aaaa, 1 by bbbb)"]


@pytest.mark.parametrize(
    ("name", "content"),
    [("run.json", b'{"run_id": '), ("run.json", b"[]"), ("metrics.parquet", b"PAR1"), ("config.yaml", b"a: [")],
)
def test_a_damaged_record_is_named_and_left_out(tmp_path, name, content):
    write_run(tmp_path, seed=0)
    damaged = write_run(tmp_path, seed=1)
    (damaged / name).write_bytes(content)
    done = collect(tmp_path)
    assert done.runs == {"toy/cpu": 1}
    assert len(done.warnings) == 1
    assert str(damaged / name) in done.warnings[0]


def test_folders_put_aside_are_no_records(tmp_path):
    folder = write_run(tmp_path)
    shutil.copytree(folder, folder.with_name(folder.name + ".damaged-1"))
    assert list(find_records(tmp_path)) == [folder]


def test_unknown_experiments_and_roots_are_refused(tmp_path):
    write_run(tmp_path)
    with pytest.raises(ValueError, match=r"^experiment must be one with records \(toy/cpu\), got nothing"):
        collect(tmp_path, experiments=["nothing"])
    with pytest.raises(ValueError, match=r"^roots must be folders"):
        collect(tmp_path, [tmp_path / "absent"])
    assert not (tmp_path / "data").exists()
