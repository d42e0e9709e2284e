"""Execute the notebooks on results/ and store them with their outputs; --check: say which ones' outputs are stale.

    python scripts/notebooks.py [--check]

The same data and versions give the same bytes: no times are stored. Stale means that a text that a cell shows is
another one now, or that a cell draws more or fewer pictures. Of a cell tagged `varies`, which trains or tells minutes,
only counts whether it shows something.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).parents[1] / "notebooks"


def executed(path: Path) -> Any:
    """The notebook as it is when all its cells have run anew, from its own folder."""
    book = nbformat.read(path, as_version=4)
    NotebookClient(book, timeout=600, record_timing=False, resources={"metadata": {"path": str(FOLDER)}}).execute()
    return book


def shown(book: Any) -> list[tuple[str, str]]:
    """(cell, what it shows) of every output: its text, or that it is a picture, or that it is another at every run."""
    found = []
    for cell in book.cells:
        for output in cell.get("outputs", []):
            if "varies" in cell.metadata.get("tags", []):
                found.append((cell.id, "something"))
                continue
            data = output.get("data", {})
            picture = "image/png" in data
            text = "a picture" if picture else output.get("text") or data.get("text/markdown") or data.get("text/plain")
            found.append((cell.id, str(text)))
    return found


def main(words: list[str]) -> int:
    """Exit status: 0; 1 where --check found stale outputs."""
    stale = []
    for path in sorted(FOLDER.glob("*.ipynb")):
        book = executed(path)
        if "--check" in words:
            if shown(book) != shown(nbformat.read(path, as_version=4)):
                stale.append(path.name)
        else:
            nbformat.write(book, path)
            print(path.name)
    if stale:
        print(f"stale outputs: {', '.join(stale)} (make notebooks)", file=sys.stderr)
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
