"""A whole tuning in this process: equal trials, equal rates, selection, generated settings, final runs."""

from __future__ import annotations

import math
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra import initialize_config_dir

from clipbench import tune
from clipbench.cli.command import condense
from clipbench.cli.compose import CONFIG_PATH, compose_node, resolve
from clipbench.config.tuned import folders
from clipbench.errors import ConfigError
from clipbench.tuning.sequence import point
from tests.runs.helpers import info
from tests.tuning.helpers import SMALL, arguments, contents, records, settings, states, tuned

COMMON = ("trials=3", "methods=sgd,norm_clip", "final_seeds=0,1")
LOW, HIGH = 1e-4, 0.1


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tuning")
    tuned(folder, *COMMON)
    return folder


def test_every_method_has_the_same_trials_and_the_same_rates(done: Path) -> None:
    rates: dict[str, dict[int, float]] = {"sgd": {}, "norm_clip": {}}
    for run, place in records(done):
        if run["role"] == "tune":
            config = yaml.safe_load((place / "config.yaml").read_text())
            rates[run["method"]][run["trial"]] = config["optimizer"]["lr"]
            assert run["seed"] == 1000
            assert run["steps"] == 40
    assert rates["sgd"] == rates["norm_clip"]
    assert sorted(rates["sgd"]) == [0, 1, 2]
    for trial, rate in rates["sgd"].items():
        assert rate == pytest.approx(LOW * (HIGH / LOW) ** point(trial, 1)[0], rel=1e-3)


def test_tuning_never_sees_the_test_split_and_final_runs_see_it_at_their_evaluations(done: Path) -> None:
    for (method, role, trial, seed), (_, rows) in contents(done).items():
        at = {split: [row[0] for row in rows if row[3] == split] for split in ("validation", "test")}
        assert at["test"] == (at["validation"] if role == "final" else []), (method, role, trial, seed)
        assert at["validation"][-1] == 40, "the last step"


def test_the_best_trial_on_validation_is_selected_and_run_on_fresh_seeds(done: Path) -> None:
    for method in ("sgd", "norm_clip"):
        own = [(run, place) for run, place in records(done) if run["method"] == method]
        trials = {run["trial"]: run["final"]["validation_loss"] for run, _ in own if run["role"] == "tune"}
        best = min(trials, key=lambda k: trials[k])
        (winner,) = [place for run, place in own if run["trial"] == best]
        chosen = yaml.safe_load((winner / "config.yaml").read_text())
        finals = [(run, place) for run, place in own if run["role"] == "final"]
        assert sorted(run["seed"] for run, _ in finals) == [0, 1]
        for _, place in finals:
            config = yaml.safe_load((place / "config.yaml").read_text())
            assert (config["optimizer"], config["method"]) == (chosen["optimizer"], chosen["method"])
        written = yaml.safe_load(settings(done)[method])
        assert written["settings"]["optimizer"]["lr"] == chosen["optimizer"]["lr"]
        assert f"Trial {best} of 3" in settings(done)[method]


def composed(folder: Path, *words: str) -> tuple[dict[str, Any], list[str]]:
    """The config of a run that looks for tuned settings in `folder`, and what is said of them."""
    said: list[str] = []
    given = [*SMALL, f"paths.tuned={folder}/tuned", *words]
    with initialize_config_dir(CONFIG_PATH, version_base="1.3"):
        node = compose_node(given)
        return resolve(node, node.hydra.runtime.choices, given, said.append), said


def test_tuned_settings_are_applied_and_said(done: Path) -> None:
    plain, said = composed(done, "method=norm_clip", "seed=7", "log_every=20")
    expected = yaml.safe_load(settings(done)["norm_clip"])
    assert plain["method"]["clipper"]["threshold"] == expected["settings"]["method"]["clipper"]["threshold"]
    assert plain["optimizer"]["lr"] == expected["settings"]["optimizer"]["lr"]
    assert plain["tuned"] == expected["mark"]
    assert said == [
        line for line in said if line.startswith("tuned settings of heavy_tailed_mlp/smoke/norm_clip: optimizer")
    ]
    assert len(said) == 1


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["optimizer.lr=0.07"], "optimizer.lr is given"),
        (["batch_size=16"], "batch_size is 16, tuned was 32"),
        (["steps=50"], "steps is 50, tuned was 40"),
        (["model.bias=false"], "model.bias is False, tuned was True"),
        (["optimizer.momentum=0.5"], "optimizer.momentum is 0.5, tuned was 0.9"),
        (["optimizer=adam"], "optimizer."),
        (["noise=rank_one"], "noise."),
        (["skip.whole=[head]"], "skip.whole is ['head'], tuned was []"),
    ],
)
def test_tuned_settings_hold_only_where_everything_else_is_what_was_tuned(
    words: list[str], why: str, done: Path
) -> None:
    plain, said = composed(done, "method=norm_clip", *words)
    untouched, nothing = composed(done, "method=norm_clip", "tuned=none", *words)
    assert plain == untouched
    assert nothing == []
    assert plain["tuned"] == "none"
    assert len(said) == 1
    assert said[0].startswith(f"tuned settings of heavy_tailed_mlp/smoke/norm_clip left out: {why}")


def test_a_method_or_experiment_that_was_not_tuned_stays(done: Path) -> None:
    assert composed(done, "method=ps_clip") == composed(done, "method=ps_clip", "tuned=none")
    assert composed(done, "method=ps_clip")[0]["tuned"] == "none"


def test_final_runs_say_that_they_are_tuned_and_trials_that_they_are_not(done: Path) -> None:
    for run, place in records(done):
        config = yaml.safe_load((place / "config.yaml").read_text())
        expected = yaml.safe_load(settings(done)[run["method"]])["mark"] if run["role"] == "final" else None
        assert run["tuned"] == expected
        assert config["tuned"] == (expected or "none")


def test_a_run_of_the_tuned_settings_says_so(done: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "clipbench.run", *SMALL, f"paths.tuned={done}/tuned", f"paths.results={tmp_path}"]
    out = subprocess.run([*command, "method=norm_clip"], capture_output=True, text=True, check=True).stdout
    assert out.startswith("tuned settings of heavy_tailed_mlp/smoke/norm_clip: ")
    (run,) = [run for run, _ in records(tmp_path)]
    assert run["tuned"] == yaml.safe_load(settings(done)["norm_clip"])["mark"]


@pytest.mark.parametrize(
    "content", ["", "a: [", "settings: {}", "mark: trial 1 of 2\nis_baseline: 0\nsettings: {}\nbase: {}"]
)
def test_a_damaged_file_is_named(content: str, tmp_path: Path) -> None:
    path = tmp_path / "tuned" / "heavy_tailed_mlp" / "smoke" / "sgd.yaml"
    path.parent.mkdir(parents=True)
    path.write_text(content)
    with pytest.raises(ConfigError, match=re.escape(str(path))):
        composed(tmp_path)
    assert composed(tmp_path, "tuned=none")[0]["tuned"] == "none"
    with pytest.raises(ConfigError, match="tuned must be auto or none, got typo"):
        composed(tmp_path, "tuned=typo")


def test_settings_lie_in_a_checkout_or_beside_the_results_of_an_installed_package(tmp_path: Path) -> None:
    config = {"paths": {"tuned": None, "results": str(tmp_path / "results")}}
    conf, beside = tmp_path / "conf", tmp_path / "results" / "tuned"
    assert folders(config, conf, checkout=True) == [conf / "tuned_settings", beside]
    assert folders(config, conf, checkout=False) == [beside, conf / "tuned_settings"]
    config["paths"]["results"] = str(tmp_path / "board")  # results that stay apart leave the checkout as it is
    assert folders(config, conf, checkout=True) == [tmp_path / "board" / "tuned", conf / "tuned_settings"]
    config["paths"]["tuned"] = "~/mine"
    assert folders(config, conf, checkout=True) == [Path.home() / "mine"]


def test_again_nothing_runs_and_nothing_changes(done: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.stat().st_mtime_ns for path in done.rglob("*.json")}
    text = settings(done)
    tuned(done, *COMMON)
    assert {path: path.stat().st_mtime_ns for path in done.rglob("*.json")} == before
    assert settings(done) == text
    assert "6 trials, 0 to do" in capsys.readouterr().out


def test_more_trials_go_on_from_those_there_are(done: Path, tmp_path: Path) -> None:
    shutil.copytree(done, tmp_path / "more")
    tuned(tmp_path / "more", "trials=4", *COMMON[1:])
    before, after = contents(done), contents(tmp_path / "more")
    assert {key: after[key] for key in before if key[1] == "tune"} == {
        k: v for k, v in before.items() if k[1] == "tune"
    }
    assert sum(key[1] == "tune" for key in after) == 8


@pytest.mark.slow
def test_a_damaged_storage_is_rebuilt_from_the_records(
    done: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "damaged"
    shutil.copytree(done, folder)
    database = folder / "results" / "tune" / "studies.db"
    whole = database.read_bytes()
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("run.json")}
    for content in (whole[: len(whole) // 2], b"no database at all" * 100, b""):
        database.write_bytes(content)
        tuned(folder, *COMMON)
        assert len(states(database)) == 6 + 4 + 1  # the reference run
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("run.json")} == before, "nothing was run again"
    assert "moved to studies.db.damaged-" in capsys.readouterr().out
    assert settings(folder) == settings(done)


def test_diverged_trials_count_and_are_never_selected(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ranges = ["tuning.ours.shared.optimizer.lr.low=1e-6", "tuning.ours.shared.optimizer.lr.high=1e6"]
    tuned(tmp_path, "trials=4", "methods=sgd", "final_seeds=0", *ranges)
    status = {key[2]: value[0] for key, value in contents(tmp_path).items() if key[1] == "tune"}
    assert len(status) == 4
    diverged = sum(value == "diverged" for value in status.values())
    assert 1 <= diverged < 4
    assert f"of 4 ({diverged} diverged)" in settings(tmp_path)["sgd"]


def test_where_all_trials_diverge_nothing_is_selected(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ranges = ["tuning.ours.shared.optimizer.lr.high=1e20", "tuning.ours.shared.optimizer.lr.low=1e18"]
    tuned(tmp_path, "trials=2", "methods=sgd", "final_seeds=0", *ranges)
    assert "sgd: nothing to select (2 diverged)" in capsys.readouterr().out
    assert settings(tmp_path) == {}


@pytest.mark.slow
def test_a_failing_trial_counts_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from clipbench.training.trainer import Trainer

    step = Trainer.step

    def broken(self: Trainer, number: int) -> object:
        if self.setup.options.trial == 1:
            raise MemoryError("none left")
        return step(self, number)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "step", broken)
        tuned(tmp_path, *COMMON)
    out = capsys.readouterr().out
    assert "sgd trial 1 failed: MemoryError: none left" in out
    assert "2 ok, 1 failed" in out
    (failed,) = [place for run, place in records(tmp_path) if run["method"] == "sgd" and run["trial"] == 1]
    assert info(failed)["status"] == "failed"
    assert "MemoryError" in (failed / "error.txt").read_text()
    tuned(tmp_path, *COMMON, "retry=never")
    assert info(failed)["status"] == "failed"
    tuned(tmp_path, *COMMON)
    assert info(failed)["status"] == "ok"
    assert not (failed / "error.txt").exists()


@pytest.mark.slow
def test_pruned_trials_count_and_stay_unfinished(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tuned(tmp_path, "trials=12", "methods=sgd", "final_seeds=0", "pruner=median", "eval_every=5")
    out = capsys.readouterr().out
    pruned = out.count(": pruned")
    assert pruned >= 1
    assert f"{12 - pruned} ok, {pruned} pruned" in out
    status = [value[0] for key, value in contents(tmp_path).items() if key[1] == "tune"]
    assert (status.count("ok"), status.count("running")) == (12 - pruned, pruned)
    assert f"of 12 ({pruned} pruned)" in settings(tmp_path)["sgd"]


@pytest.mark.slow
def test_tpe_starts_from_the_sequence_and_one_worker_repeats_itself(tmp_path: Path) -> None:
    def rates(folder: Path) -> dict[int, float]:
        tuned(folder, "trials=13", "methods=norm_clip", "final_seeds=0", "sampler=tpe", "steps=4")
        return {
            run["trial"]: yaml.safe_load((place / "config.yaml").read_text())["optimizer"]["lr"]
            for run, place in records(folder)
            if run["role"] == "tune"
        }

    first = rates(tmp_path / "first")
    assert first == rates(tmp_path / "second")
    sequence = {k: LOW * (HIGH / LOW) ** point(k, 1)[0] for k in range(13)}
    assert all(first[k] == pytest.approx(sequence[k], rel=1e-3) for k in range(10))
    assert not any(math.isclose(first[k], sequence[k], rel_tol=1e-2) for k in range(10, 13))


BAD = [
    (["seed=1"], "seed is set by clipbench.tune"),
    (["role=final"], "role is set by clipbench.tune"),
    (["method=sgd"], "method is set by clipbench.tune (methods=… says which are tuned)"),
    (["trials=0"], "tuning.trials must be >= 1, got 0"),
    (["trials=many"], "tuning.trials must be a valid integer, got many"),
    (["methods=sgd,ps_clop"], "method must be one of"),
    (["metric=test_loss"], "tuning.metric must be a metric of the validation split"),
    (["metric=validation_f1"], "tuning.metric must be one of train_loss, validation_loss, got validation_f1"),
    (["sampler=grid"], "tuning.sampler must be one of 'sobol', 'tpe', got grid"),
    (["pruner=hard"], "tuning.pruner must be one of 'none', 'median', got hard"),
    (["protocol=theirs"], "tuning.protocol must be one of 'ours', 'paper', got theirs"),
    (["protocol=paper"], "tuning.paper must state the ranges of sgd for protocol=paper"),
    (["final_seeds=1000,1"], "tuning.final_seeds must not hold tuning.seed, got 1000 in both"),
    (["final_seeds=1,1"], "tuning.final_seeds must differ from each other, got [1, 1]"),
    (["final_seeds=-1"], "tuning.final_seeds.0 must be >= 0, got -1"),
    (["optimizer.lr=0.1"], "optimizer.lr is tuned for sgd, got a value for it too"),
    (["optimizer.lrr=0.1"], "optimizer.lrr is not an option"),
    (["tuning.ours.shared.optimizer.lr.low=9"], "tuning.ours: optimizer.lr.low must be < high, got 9 and 0.1"),
    (["storage=nonsense://x"], "tuning.storage must be a database that can be opened, got nonsense://x"),
    (["storage=nonsense://me:hidden@host/x"], "got nonsense://me:***@host/x"),
    (["+tuning.like.ps_clip=value_clip", "methods=sgd,ps_clip"], "tuning.like of ps_clip must be among the methods"),
    (["--config-dir"], "--config-dir must be followed by a folder that is there, got nothing"),
    (["--config-dir=nowhere/at/all"], "--config-dir must be followed by a folder that is there, got nowhere/at/all"),
    (["trails=4"], "trails is not an option (did you mean trials?)"),
    (["trials"], "trials must be an option as key=value"),
    (["--trials"], "--trials must be an option as key=value"),
]


@pytest.mark.parametrize(("words", "line"), BAD, ids=[" ".join(words) for words, _ in BAD])
def test_bad_input_is_one_line(words: list[str], line: str, tmp_path: Path) -> None:
    with pytest.raises(Exception) as raised:  # noqa: PT011 - the line is what is checked
        tune.main(arguments(tmp_path, *words))
    said = condense(raised.value)
    assert said is not None, raised.value
    assert line in said
    assert len(said.splitlines()) == 1
    assert "hidden" not in said
    assert not list(tmp_path.rglob("run.json"))


def test_an_experiment_must_be_given(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"experiment must be given, as experiment=heavy_tailed_mlp/smoke"):
        tune.main(["trials=2", f"paths.results={tmp_path}"])


def test_help_needs_no_torch_and_errors_leave_with_status_2(tmp_path: Path) -> None:
    code = "import sys, runpy; sys.argv = ['tune', '--help']; runpy.run_module('clipbench.tune', run_name='__main__'); "
    code += "assert not {'torch', 'optuna', 'scipy'} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "trials=16" in done.stdout
    command = [sys.executable, "-m", "clipbench.tune", *arguments(tmp_path, "trials=0")]
    bad = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (bad.returncode, bad.stderr) == (2, "clipbench: tuning.trials must be >= 1, got 0\n")
