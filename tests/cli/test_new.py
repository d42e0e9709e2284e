"""The files of a new method: they work at once, and their test goes red where the rule is broken."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from clipbench import new
from clipbench.errors import ConfigError, Unwritable
from tests.cli.test_outside import RUN, python


def outcome_of(folder: Path) -> subprocess.CompletedProcess[str]:
    return python(folder, "pytest", "-q", "-p", "no:cacheprovider", "test_my_rule.py")


@pytest.mark.slow
def test_a_new_method_passes_at_once_and_fails_when_broken(tmp_path: Path) -> None:
    new.main(["method", "my_rule", "--into", str(tmp_path)])
    files = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert files == {"my_rule.py", "conf/method/my_rule.yaml", "twin_my_rule.py", "test_my_rule.py"}
    passed = outcome_of(tmp_path)
    assert passed.returncode == 0, passed.stdout
    done = python(tmp_path, *RUN, "--config-dir", "conf", "--allow", "my_rule", "method=my_rule")
    assert done.returncode == 0, done.stderr
    rule = tmp_path / "my_rule.py"
    text = rule.read_text()
    for right, wrong in (("norm > self", "norm < self"), ("(self.threshold / norm)", "(norm / self.threshold)")):
        assert right in text
        rule.write_text(text.replace(right, wrong))
        assert outcome_of(tmp_path).returncode == 1, wrong
    linted = subprocess.run(
        [sys.executable, "-m", "ruff", "check", "--isolated", "--line-length=120", str(tmp_path)], check=False
    )
    assert linted.returncode == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["method", "My-Rule"], "must be lower-case words"),
        (["method", "../x"], "must be lower-case words"),
        (["method", "norm_clip"], "must be a new one"),
        (["method", "class"], "must be lower-case words"),
        (["method", "math"], "which it would hide"),
        (["method", "torch"], "which it would hide"),
        (["model", "x"], "must be method NAME"),
        (["method"], "must be method NAME"),
    ],
)
def test_bad_input(words: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=said):
        new.main(words)
    assert not list(tmp_path.iterdir())


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "twin_my_rule.py").write_text("mine")
    with pytest.raises(ConfigError, match=r"without twin_my_rule\.py"):
        new.main(["method", "my_rule", f"--into={tmp_path}"])
    assert [path.name for path in tmp_path.iterdir()] == ["twin_my_rule.py"]


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(Unwritable, match=r"--into must be a writable folder, got .*/file/x \(my_rule.py: "):
        new.main(["method", "my_rule", "--into", str(tmp_path / "file" / "x")])
