"""Command lines as people type them: flags anywhere, near misses, values that need quotes, a reader that is gone."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hydra._internal.utils import get_args_parser
from hydra.errors import OverrideParseException

from clipbench.cli import hints, outside
from clipbench.cli.arguments import flags_first, overrides
from clipbench.cli.command import condense
from clipbench.cli.compose import compose
from clipbench.errors import ConfigError
from tests.cli.test_bad_input import line_for

SMALL = ["steps=4", "eval_every=1", "dataset.samples=64", "dataset.validation=16", "dataset.test=16"]


def run(*words: str, folder: Path, module: str = "clipbench.run") -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if key != "HYDRA_FULL_ERROR"}
    return subprocess.run(
        [sys.executable, "-m", module, *words],
        cwd=folder, capture_output=True, text=True, env=environment, timeout=120, check=False,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["a=1", "-m", "b=1,2"], ["-m", "a=1", "b=1,2"]),
        (["a=1", "b=1,2", "--multirun"], ["--multirun", "a=1", "b=1,2"]),
        (["-m", "a=1", "b=2"], ["-m", "a=1", "b=2"]),
        (["a=1", "--cfg", "job", "b=2"], ["--cfg", "job", "a=1", "b=2"]),
        (["a=1", "-cd", "conf=x", "conf=x", "-m"], ["-cd", "conf=x", "-m", "a=1", "conf=x"]),
        ([], []),
    ],
)
def test_flags_may_stand_anywhere(words: list[str], expected: list[str]) -> None:
    assert flags_first(words, get_args_parser()) == expected


def test_an_unknown_flag_is_one_line() -> None:
    with pytest.raises(ConfigError, match=r"^unrecognized arguments: --nonsense \(--help lists the flags\)$"):
        flags_first(["a=1", "--nonsense"], get_args_parser())


@pytest.mark.slow
@pytest.mark.parametrize(
    "words", [["paths.results=x", "-m", "seed=0,1"], ["seed=0,1", "paths.results=x", "--multirun"]]
)
def test_a_sweep_with_options_before_its_flag(words: list[str], tmp_path: Path) -> None:
    done = run(*words, *SMALL, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "clipbench: " not in done.stderr
    assert "sweep: 2 runs, 0 done, 2 to do" in done.stdout
    assert "sweep ended: 2 ok" in done.stdout


@pytest.mark.parametrize(
    ("option", "meant"),
    [
        ("lr", "optimizer.lr"), ("momentum", "optimizer.momentum"), ("root", "data.root"), ("trails", "tuning.trials"),
        ("sead", "seed"), ("eval_evry", "eval_every"), ("optimizer.momentm", "optimizer.momentum"),
    ],
)  # fmt: skip
def test_what_was_probably_meant(option: str, meant: str) -> None:
    assert hints.near(option) == f" (did you mean {meant}?)"


def test_the_options_of_the_chosen_method_are_meant_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["run", "method=norm_clip", "threshold=1"])
    assert hints.near("threshold") == " (did you mean method.clipper.threshold?)"
    monkeypatch.setattr(sys, "argv", ["run", "method=nope", "alpha=1"])
    assert hints.near("xyzzy") == " (python -m clipbench.run --help lists them)"


@pytest.mark.parametrize(
    ("word", "meant"), [("trails=3", "trials"), ("trial_s=3", "trials"), ("method_s=a", "methods")]
)
def test_a_command_s_own_words_come_first(word: str, meant: str) -> None:
    with pytest.raises(ConfigError, match=rf"is not an option \(did you mean {meant}\?\)$"):
        overrides([word], "tuning", ("trials", "methods", "metric"))
    assert overrides(["trial=3", "method=a"], "tuning", ("trials", "methods")) == ["trial=3", "method=a"]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("heavy_tailed_mlp", "heavy_tailed_mlp/cpu, heavy_tailed_mlp/paper, heavy_tailed_mlp/smoke"),
        ("heavy_tailed_mlp/huge", "heavy_tailed_mlp/smoke"),
        ("heavy_taild_mlp/cpu", "<name>/<size> with a name of heavy_tailed_mlp,"),
    ],
)
def test_an_experiment_s_sizes_are_listed(given: str, said: str) -> None:
    line = line_for([f"experiment={given}"])
    assert line.startswith("experiment must be ")
    assert said in line
    assert line.endswith(f"got {given}")


def test_experiments_of_ones_own_are_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "experiment" / "mine"
    folder.mkdir(parents=True)
    (folder / "small.yaml").write_text("# @package _global_\n")
    for words in (["--config-dir", str(tmp_path)], [f"--config-dir={tmp_path}"]):
        monkeypatch.setenv(outside.VARIABLE, "")
        outside.taken(words)
        assert hints.experiments("mine") == "experiment must be one of mine/small, got mine"


UNREADABLE = ["paths.results=a(b", "paths.results=it's", "data.root=[1", "a b=1", "optimizer.lr", "method=sgd seed=1",
              "seed=1,"]  # fmt: skip


@pytest.mark.parametrize("word", UNREADABLE)
def test_a_word_that_cannot_be_read_gets_the_hint_to_quote(word: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["run", word])
    with pytest.raises(OverrideParseException) as raised:
        compose([word])
    line = condense(raised.value)
    assert line is not None
    assert word in line
    assert """'key="a value"'""" in line
    assert "\n" not in line


@pytest.mark.parametrize(
    ("word", "why"),
    [
        ("seed=range(1,2,3,4)", "too many positional arguments"), ("seed=choice()", "empty choice is not legal"),
        ("seed=range(a)", "mismatch type argument start: str is incompatible with Union[int, float]"),
    ],
)  # fmt: skip
def test_a_sweep_s_own_error_is_told(word: str, why: str) -> None:
    assert line_for([word]) == f"{word} cannot be read: {why}"


def test_an_argument_that_a_file_leaves_to_its_class_is_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """As of a class from an entry point, whose config is its path alone."""
    config = {"seed": 0, "method": {"name": "mine", "clipper": {"_target_": "my_package.Mine"}}}
    monkeypatch.setattr(hints, "_config", lambda: config)
    expected = " in its file (an argument that the file leaves to the class is added: +method.clipper.scale=…)"
    assert hints.near("method.clipper.scale") == expected
    assert hints.near("xyzzy.clipper") == " (python -m clipbench.run --help lists them)"


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ("context must be < 11, the length of the shortest split, got 256", True),
        ("model.widths[0] must be >= 1, got 0", True),
        ("too many values to unpack (expected 2)", False),
        ("x must be > 0, got 1\nand more", False),
    ],
)
def test_a_check_s_message_is_one_line_wherever_it_is_raised(message: str, shown: bool) -> None:
    assert condense(ValueError(message)) == (message if shown else None)


SWEEPS = [
    (["method=glob(*orm_clip)"], "sweep: 1 run, 0 done, 1 to do", 0),
    (["seed=range(0,2)"], "sweep: 2 runs, 0 done, 2 to do", 0),
    (["optimizer.lr=interval(0,1)"], "got optimizer.lr=interval(0,1)", 2),
    (["method=glob(nrm*)"], "method must have a value to run, got method=glob(nrm*), which finds none", 2),
    (["seed=range(3,1)"], "seed must have a value to run, got seed=range(3,1), which finds none", 2),
    (["seed=0,1", "together=0"], "clipbench: together must be >= 1, got 0", 2),  # bad in all runs: none is made
    (["optimizer.lr=fast,slow"], "clipbench: optimizer.lr must be a number, got fast", 2),
]


@pytest.mark.slow
@pytest.mark.parametrize(("words", "said", "status"), SWEEPS, ids=[row[0][0] for row in SWEEPS])
def test_every_kind_of_sweep_has_a_plan_or_is_refused(words: list[str], said: str, status: int, tmp_path: Path) -> None:
    done = run("-m", *words, *SMALL, folder=tmp_path)
    assert done.returncode == status
    assert said in done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert ("sweep ended: " in done.stdout) == (status == 0)


@pytest.mark.slow
def test_a_run_that_cannot_be_made_is_told_at_first_and_at_last(tmp_path: Path) -> None:
    words = ["-m", "optimizer.lr=0.1,fast", *SMALL]
    for found in ("", " (1 skipped, done before)"):  # also where all that can be made was found
        done = run(*words, folder=tmp_path)
        assert done.returncode == 2
        assert done.stderr.startswith("clipbench: 1 run cannot be made: optimizer.lr must be a number, got fast\n")
        assert done.stderr.splitlines()[-1] == "clipbench: optimizer.lr must be a number, got fast"
        assert f"sweep ended: 1 ok{found}\n" in done.stdout


@pytest.mark.slow
def test_a_folder_that_cannot_be_written_has_the_status_of_bad_input(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = run(f"paths.results={tmp_path / 'file'}", *SMALL, folder=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("clipbench: paths.results must be a writable folder, got ")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.slow
@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_reader_that_is_gone_costs_no_run(stream: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "clipbench.run", f"paths.results={tmp_path}", *SMALL]
    ends = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen(command, cwd=tmp_path, text=True, **ends)
    getattr(process, stream).close()
    other = process.stderr if stream == "stdout" else process.stdout
    left = other.read()
    assert process.wait(120) == 0
    assert "Traceback" not in left
    assert "Broken" not in left
    assert len(list(tmp_path.rglob("metrics.parquet"))) == 1
