"""What a new rule touches inside the package: three new files and its test, and no line of any other."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from clipbench import new

ROOT = Path(__file__).parents[2]
TOUCHED = {
    "clipbench/clipping/my_rule.py": "my_rule.py",
    "conf/method/my_rule.yaml": "conf/method/my_rule.yaml",
    "tests/reference/my_rule.py": "twin_my_rule.py",
    "tests/clipping/test_my_rule.py": "test_my_rule.py",
}
MOVED = {
    "from my_rule import": "from clipbench.clipping.my_rule import",
    "from twin_my_rule import": "from tests.reference.my_rule import",
    "_target_: my_rule.MyRule": "_target_: clipbench.clipping.my_rule.MyRule",
    '"my_rule.MyRule"': '"clipbench.clipping.my_rule.MyRule"',
}


def moved(text: str) -> str:
    """A file of the template with the names that it has inside the package."""
    for old, inside in MOVED.items():
        text = text.replace(old, inside)
    return text


def counted() -> list[str]:
    """The lines of `git diff --stat` for the template's files, without its bars."""
    made = new.files("my_rule")
    width = max(map(len, TOUCHED))
    lines = {path: len(moved(made[source]).splitlines()) for path, source in TOUCHED.items()}
    return [f" {path:<{width}} | {count}" for path, count in lines.items()] + [
        f" {len(lines)} files changed, {sum(lines.values())} insertions(+)"
    ]


def test_the_guide_shows_this_diff() -> None:
    assert "\n".join(counted()) in (ROOT / "docs" / "your_method.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_three_files_and_a_test_make_a_method(tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    environment = {**os.environ, "PYTHONPATH": str(copy)}

    def run(*words: str) -> str:
        done = subprocess.run(words, cwd=copy, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout
    for name in filter(None, listed.decode().split("\0")):
        if name.split("/")[0] in ("clipbench", "conf", "tests", "pyproject.toml", ".gitignore"):
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            (copy / name).write_bytes((ROOT / name).read_bytes())
    run("git", "init", "-q")
    run("git", "add", "-A")
    run("git", "-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "before")
    made = new.files("my_rule")
    for path, source in TOUCHED.items():
        (copy / path).write_text(moved(made[source]), encoding="utf-8")
    python = (sys.executable, "-m")
    run(*python, "clipbench.run", "method=my_rule", "steps=5", "device=cpu", "paths.results=results/own")
    tests = ("tests/clipping/test_my_rule.py", "tests/contract/test_methods.py", "tests/training/test_trainer.py")
    passed = run(*python, "pytest", "-q", "-p", "no:cacheprovider", "-k", "my_rule", "-m", "not gpu", *tests)
    assert "passed" in passed
    assert "failed" not in passed
    collected = run(*python, "pytest", "-q", "-p", "no:cacheprovider", "-k", "my_rule", "--collect-only", *tests)
    assert all(f"{path}::" in collected for path in tests), collected
    changed = run("git", "status", "--porcelain", "--untracked-files=all").splitlines()
    assert sorted(changed) == [f"?? {path}" for path in sorted(TOUCHED)]
