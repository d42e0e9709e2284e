"""`python -m clipbench` lists every command, and each of them is there."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec

import pytest

from clipbench.__main__ import commands, main


def test_every_command_is_listed_and_is_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("python -m clipbench.")]
    names = [line.split()[2].removeprefix("clipbench.") for line in lines]
    assert set(names) >= {
        "run",
        "tune",
        "leaderboard",
        "calibrate",
        "report",
        "verify",
        "check",
        "new",
        "suggest",
        "bench",
    }
    for name, line in zip(names, lines, strict=True):
        assert find_spec(f"clipbench.{name}") is not None
        assert len(line.split(maxsplit=3)[3]) > 20, line
    assert "__main__" not in names


def test_a_command_given_as_a_word_is_answered_with_its_module(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run"]) == 2
    assert "python -m clipbench.run" in capsys.readouterr().err
    assert main(["rum"]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_it_needs_no_extra() -> None:
    """Of the packages of the extras nothing is imported."""
    code = "import sys, runpy; sys.argv = ['clipbench']\ntry:\n runpy.run_module('clipbench', run_name='__main__')\n"
    code += "except SystemExit as e:\n assert e.code == 0\nassert not {'hydra', 'pandas', 'torch'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    assert "run" in commands()
