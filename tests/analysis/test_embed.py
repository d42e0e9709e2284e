"""Generated tables inside README.md."""

from __future__ import annotations

from pathlib import Path

from clipbench.analysis.embed import embed

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
