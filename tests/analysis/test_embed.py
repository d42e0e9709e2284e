"""Generated tables inside README.md."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from clipbench.analysis.embed import embed
from clipbench.errors import RecordError

TEXT = """# Title
<!-- generated: tables/a.md -->
old
<!-- end -->
between
<!-- generated: tables/missing.md -->
kept
<!-- end -->
"""


def test_blocks_are_refilled_and_missing_files_named(tmp_path: Path) -> None:
    (tmp_path / "tables").mkdir()
    (tmp_path / "tables" / "a.md").write_text("## Head\n\n| x |\n| - |\n| 1 |\n")
    document = tmp_path / "README.md"
    document.write_text(TEXT)
    assert embed(document) == ["tables/missing.md"]
    text = document.read_text()
    assert "**Head**\n\n| x |\n| - |\n| 1 |\n<!-- end -->\nbetween" in text
    assert "old" not in text
    assert "kept" in text
    embed(document)
    assert document.read_text() == text, "a second pass changes nothing"


def test_a_full_disk_leaves_the_document_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tables").mkdir()
    (tmp_path / "tables" / "a.md").write_text("| x |\n")
    document = tmp_path / "README.md"
    document.write_text(TEXT)

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RecordError, match="no space left"):
        embed(document)
    assert document.read_text() == TEXT
    assert sorted(path.name for path in tmp_path.iterdir()) == ["README.md", "tables"]
