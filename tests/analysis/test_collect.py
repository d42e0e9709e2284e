"""Records → one file per experiment: complete, anonymous, merged from several machines, the same bytes every
time."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from clipbench.analysis import collect, load
from clipbench.analysis.collect import CURVE_POINTS, _flat, add, bring, find_records, merge_files, read_record
from clipbench.analysis.fields import ENTRIES, HIDDEN, clean, public
from clipbench.runs.archive import _mappings, data_file, holds_runs, read_data, selection_file, stem
from tests.analysis.synthetic import write_calibration, write_comparison, write_run


def edit(folder, **entries):
    path = folder / "run.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))


def test_collect_puts_all_runs_of_an_experiment_into_one_file(tmp_path):
    write_comparison(tmp_path, seeds=2)
    write_run(tmp_path, "sgd", 0, "single")
    done = collect(tmp_path)
    assert done.runs == {"single": 1, "toy/cpu": 6}
    assert done.warnings == []
    assert sorted(p.name for p in (tmp_path / "data").glob("[!.]*")) == ["single.parquet", "toy__cpu.parquet"]


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
    assert table["error"].iloc[0] == "FileNotFoundError: …"


FORMS = [
    "/home/bob", "file:///home/bob", "//host/home/bob", "bob@node:/x", "~bob/x", "../../home/bob/x", "/home/o'neil",
    r"C:\\Users\\bob", "https://bob:secret@host/x", "bob@example.org", "~bob", "smb://bob", "$HOME/bob",
]  # fmt: skip


@pytest.mark.parametrize("text", FORMS)
def test_no_form_of_path_or_address_is_published(text):
    """Wherever it stands: as a value, in a list, as a key, in a message, and under any name."""
    info = {
        "run_id": "a", "experiment": "toy/cpu", "method": text, "error": f"OSError: {text} is gone", "host": "bob",
        "data": {"files": {text: "sha256:0"}, "note": [text]}, "versions": {"torch": text}, "new_entry": "bob",
    }  # fmt: skip
    config = {
        "experiment": text,
        "model": {"file": text, text: 1},
        "data": {"root": "bob"},
        "paths": {"results": "bob"},
    }
    shown = json.dumps(public(info, config), ensure_ascii=False)
    assert not [name for name in ("bob", "neil", "home", "HOME") if name in shown]
    assert text not in shown


TEXTS = {"experiment", "error", "tuned", "data", "device", "versions"}  # whose form is that of a plain sentence


@pytest.mark.parametrize("key", sorted(set(ENTRIES) - TEXTS))
def test_an_entry_of_another_form_than_its_own_is_hidden(key):
    """A number is no place for a word, nor a name for a sentence."""
    assert public({key: "bob was here"}, {})[key] == HIDDEN
    assert public({key: ["bob was here"]}, {})[key] == [HIDDEN]
    assert public({key: None}, {})[key] is None


def test_numbers_stay_numbers_wherever_they_are():
    info = {"seconds": {"train": 1.5, "wall": "bob"}, "final": {"test_loss": 0.5, "/home/bob": 1.0}, "seed": 3}
    assert public(info, {}) == {
        "seconds": {"train": 1.5, "wall": HIDDEN}, "final": {"test_loss": 0.5}, "seed": 3, "config": {},
    }  # fmt: skip


def within(part, whole):
    """Whether every value of nested mappings is that of the whole, which older files have more of."""
    if isinstance(part, dict) and isinstance(whole, dict):
        return all(key in whole and within(value, whole[key]) for key, value in part.items())
    return part == whole


def published():
    data = Path(__file__).parents[2] / "results" / "data"
    return [path for path in sorted(data.glob("*.parquet")) if holds_runs(path)]


@pytest.mark.parametrize("path", published(), ids=lambda path: path.stem)
def test_what_is_published_would_be_published_again_as_it_is(path):
    runs = read_data(path)
    assert runs
    for run in runs:
        entries = _mappings(dict(run.info))
        again = public(entries, entries["config"])
        config = again.pop("config")
        assert {key: value for key, value in _flat(again).items() if run.info[key] != value} == {}
        assert {key for key, value in run.info.items() if value is not None} <= {*again, "config"}
        assert within(config, entries["config"])


def test_what_is_no_path_is_kept_as_it_is():
    for text in (
        "Intel(R) Xeon(R) Processor @ 2.10GHz",
        "2.14.0+cpu",
        "sha256:ab12",
        "clipbench.clipping.NoClip",
        "30s",
    ):
        assert clean(text) == text
    assert clean({"a": [1, None, True, 0.5]}) == {"a": [1, None, True, 0.5]}
    assert public({"experiment": "toy/cpu"}, {"experiment": "toy/cpu"})["config"]["experiment"] == "toy/cpu"


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
    collect(other)
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


def test_the_later_attempt_is_kept_whatever_the_clocks_said(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    write_run(one, seed=0, attempt=2, train_step_seconds=1.0, finished="2026-01-01T00:00:00+00:00")
    write_run(two, seed=0, attempt=1, train_step_seconds=2.0, finished="2026-02-01T00:00:00+00:00")
    for roots in ([one, two], [two, one]):
        result = tmp_path / roots[0].name / "result"
        assert collect(result, roots).warnings == []
        assert load(result, "toy/cpu").runs["train_step_seconds"].tolist() == [1.0]


def test_two_of_one_attempt_are_a_conflict_with_one_winner(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    write_run(one, seed=0, attempt=1, train_step_seconds=1.0)
    write_run(two, seed=0, attempt=1, train_step_seconds=2.0)
    kept = []
    for roots in ([one, two], [two, one]):
        result = tmp_path / roots[0].name / "result"
        (warning,) = collect(result, roots).warnings
        assert "train_step_seconds" in warning
        kept.append(data_file(result, "toy/cpu").read_bytes())
    assert kept[0] == kept[1]


def test_a_failure_newer_than_a_success_is_shown(tmp_path):
    folder = write_run(tmp_path, status="ok", attempt=1)
    collect(tmp_path)
    edit(folder, status="failed", attempt=2, error="RuntimeError: device lost")
    assert collect(tmp_path).warnings == []
    assert load(tmp_path, "toy/cpu").runs["status"].tolist() == ["failed"]
    edit(folder, status="running", attempt=3)
    collect(tmp_path)
    assert load(tmp_path, "toy/cpu").runs["status"].tolist() == ["failed"], "nothing came of the third yet"
    edit(folder, status="ok", attempt=3)
    collect(tmp_path)
    assert load(tmp_path, "toy/cpu").runs["status"].tolist() == ["ok"]


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


def test_runs_that_cannot_be_seen_stay(tmp_path):
    first = write_run(tmp_path, seed=0)
    collect(tmp_path)
    shutil.rmtree(first)
    write_run(tmp_path, seed=1)
    assert collect(tmp_path).runs == {"toy/cpu": 2}


def test_a_run_of_one_step_is_no_conflict_with_itself(tmp_path):
    """Its step time is NaN, which a file gives back as nothing."""
    write_run(tmp_path, train_step_seconds=float("nan"))
    for _ in range(3):
        assert collect(tmp_path).warnings == []


def test_two_experiments_never_share_a_file(tmp_path):
    names = ["a/b", "a__b", "a_/b", "a/_b", "a%5F%5Fb", "a%b", "a_b", "a___b", "a/b/c", "a__b/c"]
    assert len({stem(name) for name in names}) == len(names)
    assert stem("heavy_tailed_mlp/cpu") == "heavy_tailed_mlp__cpu"
    for seed, name in enumerate(("a/b", "a__b")):
        write_run(tmp_path, seed=seed, experiment=name)
    collect(tmp_path)
    assert [load(tmp_path, name).runs["seed"].tolist() for name in ("a/b", "a__b")] == [[0], [1]]


def test_many_collects_at_once_lose_nothing(tmp_path):
    roots = [tmp_path / str(number) for number in range(4)]
    for seed, root in enumerate(roots):
        write_run(root, seed=seed)
    code = "import sys; from pathlib import Path; from clipbench.analysis import collect\n"
    code += "collect(Path(sys.argv[1]), [Path(sys.argv[2])])"
    commands = [[sys.executable, "-c", code, str(tmp_path / "result"), str(root)] for root in roots]
    processes = [subprocess.Popen(command) for command in commands]
    assert [process.wait(120) for process in processes] == [0] * len(roots)
    assert sorted(load(tmp_path / "result", "toy/cpu").runs["seed"]) == list(range(4))


def test_trials_keep_final_metrics_and_twenty_points(tmp_path):
    write_run(tmp_path, seed=0, role="tune", trial=0, steps=1000)
    write_run(tmp_path, seed=1, steps=1000)
    collect(tmp_path)
    first = data_file(tmp_path, "toy/cpu").read_bytes()
    experiment = load(tmp_path, "toy/cpu")
    for run in experiment.runs.to_dict("records"):
        curve = experiment.curve(run["run_id"], "validation", "loss")
        whole = pd.read_parquet(next(tmp_path.glob(f"runs/**/{run['run_id']}/metrics.parquet")))
        whole = whole[(whole["split"] == "validation") & (whole["metric"] == "loss")]
        assert len(curve) == (min(CURVE_POINTS, len(whole)) if run["role"] == "tune" else len(whole))
        assert curve["step"].iloc[-1] == whole["step"].iloc[-1]
        assert run["final"]
    collect(tmp_path)
    assert data_file(tmp_path, "toy/cpu").read_bytes() == first


def test_git_merges_two_branches_by_run_id(tmp_path):
    """Two branches that collected different runs of one experiment merge to the union, by the documented driver."""

    def git(*words):
        subprocess.run(["git", "-C", str(tmp_path), *words], check=True, capture_output=True)

    def committed(seed):
        add(data_file(tmp_path, "toy/cpu"), [read_record(write_run(tmp_path / f"s{seed}", seed=seed))])
        git("add", "data", ".gitattributes")
        git("commit", "-m", f"seed {seed}")

    git("init", "-b", "one")
    git("config", "user.name", "somebody")
    git("config", "user.email", "somebody@example.org")
    git("config", "merge.clipbench.driver", f"{sys.executable} -m clipbench.report merge %O %A %B")
    (tmp_path / ".gitattributes").write_text("data/*.parquet merge=clipbench\n")
    committed(0)
    git("switch", "-c", "two")
    committed(1)
    git("switch", "one")
    committed(2)
    git("merge", "two", "-m", "both")
    assert sorted(load(tmp_path, "toy/cpu").runs["seed"]) == [0, 1, 2]


def test_a_table_that_holds_no_runs_is_left_to_its_owner(tmp_path):
    path = tmp_path / "calibration.parquet"
    pd.DataFrame({"method": ["sgd"]}).to_parquet(path)
    with pytest.raises(ValueError, match="must hold collected runs"):
        merge_files(path, path)


@pytest.mark.parametrize(
    ("entry", "value", "said"),
    [("seed", "three", "seed must be a whole number"), ("final", [1], "final must be a mapping"),
     ("status", "unheard", "must have a status of"), ("attempt", "2", "attempt must be a whole number")],
)  # fmt: skip
def test_odd_entries_are_one_line(tmp_path, entry, value, said):
    write_run(tmp_path, seed=0)
    edit(write_run(tmp_path, seed=1), **{entry: value})
    done = collect(tmp_path)
    assert done.runs == {"toy/cpu": 1}
    assert len(done.warnings) == 1
    assert said in done.warnings[0]


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
    expected = "toy/cpu: runs of one method (sgd, sgd, toy, mlp) by 2 versions of the code (2 by aaaa, 1 by bbbb)"
    assert collect(tmp_path).warnings == [expected]


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


def test_a_slip_is_told_from_what_is_collected_without_records(tmp_path):
    write_run(tmp_path)
    collect(tmp_path)
    shutil.rmtree(tmp_path / "runs")  # as in a clone
    with pytest.raises(ValueError, match=r"got tyo/cpu \(did you mean toy/cpu\?\)$"):
        collect(tmp_path, experiments=["tyo/cpu"])


def test_unknown_experiments_and_roots_are_refused(tmp_path):
    write_run(tmp_path)
    with pytest.raises(ValueError, match=r"^experiment must be one with records, got nothing \(there are toy/cpu\)$"):
        collect(tmp_path, experiments=["nothing"])
    with pytest.raises(ValueError, match=r"^roots must be folders"):
        collect(tmp_path, [tmp_path / "absent"])
    assert not (tmp_path / "data").exists()


def test_what_others_collected_is_brought_with_its_selection_and_its_step_times(tmp_path):
    mine, theirs = tmp_path / "mine", tmp_path / "theirs"
    for root, method in ((mine, "my_rule"), (theirs, "sgd")):
        write_run(root, method, 0)
        collect(root)
    selection_file(theirs, "toy/cpu").write_text(json.dumps({"sgd": {"trials": 4}, "my_rule": {"trials": 1}}))
    selection_file(mine, "toy/cpu").write_text(json.dumps({"my_rule": {"trials": 8}}))
    write_calibration(theirs, device="their CPU")
    write_calibration(mine, "other/cpu")
    assert bring(mine, "toy/cpu", [theirs]) == 2
    assert set(load(mine, "toy/cpu").runs["method"]) == {"my_rule", "sgd"}
    assert load(mine, "toy/cpu").tuning == {"my_rule": {"trials": 8}, "sgd": {"trials": 4}}
    measured = pd.read_parquet(mine / "data" / "calibration.parquet")
    assert set(zip(measured["experiment"], measured["device"], strict=True)) == {
        ("other/cpu", "Test CPU"),
        ("toy/cpu", "their CPU"),
    }
    before = [path.read_bytes() for path in sorted((mine / "data").glob("[!.]*"))]
    bring(mine, "toy/cpu", [theirs])
    assert [path.read_bytes() for path in sorted((mine / "data").glob("[!.]*"))] == before
    assert bring(mine, "unknown/cpu", [theirs]) == 0
    with pytest.raises(ValueError, match=r"data must be folders that are there, got .*nowhere"):
        bring(mine, "toy/cpu", [tmp_path / "nowhere"])
