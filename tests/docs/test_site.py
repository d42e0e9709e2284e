"""The site: plain docstrings become documents, and what is broken fails the build."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def docstrings() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docstrings", ROOT / "docs" / "docstrings.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_code_is_code_and_nothing_else_is_markup(docstrings: ModuleType) -> None:
    assert docstrings.as_rst([r"a*b, |x|, name_, \frac and `c_d*e`s"]) == [
        r"a\*b, \|x\|, name\_, \\frac and ``c_d*e``\ s", "",
    ]  # fmt: skip
    assert docstrings.as_rst(["one ` alone"]) == [r"one \` alone", ""]


def test_entries_lists_and_code(docstrings: ModuleType) -> None:
    text = """\
First, as in::

    x = 1

    y = 2

alpha: the first,
    which goes on.
beta, gamma: the others.

- a point
  of two lines
- another

>>> f(1)
2""".splitlines()
    assert docstrings.as_rst(text) == [
        "First, as in:", "",
        "::", "", "        x = 1", "    ", "        y = 2", "",
        "- **alpha**: the first,", "  which goes on.", "- **beta, gamma**: the others.", "",
        "- a point", "  of two lines", "- another", "",
        "::", "", "    >>> f(1)", "    2", "",
    ]  # fmt: skip


def build(docs: Path, into: Path, builder: str) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-b", builder, str(docs), str(into)]
    return subprocess.run(words, capture_output=True, text=True, timeout=280, check=False)


@pytest.mark.slow
def test_the_site_is_built(tmp_path: Path) -> None:
    pytest.importorskip("furo")
    done = build(ROOT / "docs", tmp_path, "html")
    assert done.returncode == 0, done.stderr
    found = (tmp_path / "api" / "clipping.html").read_text(encoding="utf-8")
    assert 'id="clipbench.clipping.NormClip"' in found
    assert 'href="api/per_sample.html"' in (tmp_path / "index.html").read_text(encoding="utf-8")
    assert list(tmp_path.glob("_downloads/*/bench_spectral__kernels.md"))


BROKEN = {
    "page": "[text](no_such_page.md)",
    "heading": "[text](your_method.md#no-such-heading)",
    "table": "[text](../results/tables/no_such.md)",
    "picture": "![text](../results/figures/no_such.png)",
    "module": "```{eval-rst}\n.. automodule:: clipbench.no_such\n```",
}


@pytest.mark.slow
def test_what_is_broken_fails(tmp_path: Path) -> None:
    """All kinds in one build, which names each."""
    pytest.importorskip("furo")
    docs = tmp_path / "docs"
    docs.mkdir()
    for name in ("conf.py", "docstrings.py"):
        shutil.copy(ROOT / "docs" / name, docs)
    pages = ["whole", *BROKEN]
    toctree = "\n".join(["# Start", "", "```{toctree}", *pages, "your_method", "```"])
    (docs / "index.md").write_text(toctree, encoding="utf-8")
    (docs / "your_method.md").write_text("# Yours\n\n## A heading\n", encoding="utf-8")
    (docs / "whole.md").write_text("# Whole\n\n[text](your_method.md#a-heading)\n", encoding="utf-8")
    for name, line in BROKEN.items():
        (docs / f"{name}.md").write_text(f"# {name}\n\n{line}\n", encoding="utf-8")
    done = build(docs, tmp_path / "built", "html")
    assert done.returncode == 1
    for name in BROKEN:
        word = "clipbench.no_such" if name == "module" else f"{name}.md"
        assert word in done.stderr, f"{name}: {done.stderr}"
    assert "whole.md" not in done.stderr
