"""The report as a page: self-contained, the same bytes twice, readable without a mouse and without colours."""

from __future__ import annotations

import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest

from clipbench import report
from clipbench.analysis import collect
from clipbench.analysis.page.html import page
from tests.analysis.synthetic import write_calibration, write_comparison, write_tuning

PNG = b"\x89PNG\r\n\x1a\n" + b"0" * 20


class Elements(HTMLParser):
    """Every start tag with its attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("page")
    write_comparison(root)
    write_tuning(root)
    write_calibration(root)
    collect(root)
    assert report.main(["all", "--results", str(root)]) == 0
    return root


def test_rebuilt_from_data_alone_the_bytes_are_the_same(results: Path, tmp_path: Path) -> None:
    shutil.copytree(results / "data", tmp_path / "data")
    assert report.main(["all", "--results", str(tmp_path)]) == 0
    made = {p.relative_to(tmp_path): p.read_bytes() for p in tmp_path.rglob("*") if p.is_file() and p.suffix != ".lock"}
    there = {
        p.relative_to(results): p.read_bytes()
        for p in results.rglob("*")
        if p.is_file() and "runs" not in p.parts and p.suffix != ".lock"
    }
    assert made.keys() == there.keys()
    assert [name for name in made if made[name] != there[name]] == []


def test_the_first_page_has_the_eleven_verdicts(results: Path) -> None:
    text = (results / "REPORT.md").read_text()
    first = text.index("## The claims, one by one")
    names = re.findall(r"^\| (P\d\.[a-f]) \|", text[:first], re.M)
    assert names == ["P1.a", "P1.b", "P1.c", "P1.d", "P1.e", "P2.a", "P2.b", "P2.c", "P2.d", "P2.e", "P2.f"]
    assert "## What should I use?" in text[:first]


def test_every_link_leads_somewhere(results: Path) -> None:
    text = (results / "REPORT.md").read_text()
    targets = re.findall(r"\]\(([^)#]+)\)", text)
    assert targets
    assert [target for target in targets if not (results / target).exists()] == []


def test_the_page_needs_nothing_else(results: Path) -> None:
    found = Elements((results / "report.html").read_text())
    assert {tag for tag, _ in found.tags}.isdisjoint({"script", "iframe", "object", "embed"})
    sources = [attrs["src"] or "" for _, attrs in found.tags if "src" in attrs]
    assert sources
    assert all(source.startswith("data:image/") for source in sources)
    assert all(attrs.get("alt") for tag, attrs in found.tags if tag == "img")
    assert all((attrs["href"] or "").startswith("data:") for tag, attrs in found.tags if tag == "link")


def test_anchors_are_there_and_unique(results: Path) -> None:
    found = Elements((results / "report.html").read_text())
    ids = [attrs["id"] for _, attrs in found.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    inside = [a["href"] for tag, a in found.tags if tag == "a" and (a.get("href") or "").startswith("#")]
    assert inside
    assert {str(href)[1:] for href in inside} <= set(ids)


def test_text_is_escaped_and_pictures_of_another_kind_refused(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(PNG)
    text = page("# A <b>title</b>\n\n## x\n\n## x\n\n<script>1</script>\n\n![words](a.png)\n", tmp_path)
    assert "<script>" not in text
    assert 'id="x-2"' in text
    with pytest.raises(ValueError, match="PNG or SVG"):
        page("![words](a.gif)", tmp_path)
