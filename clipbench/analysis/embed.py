"""Generated tables inside a hand-written document: what stands between two markers is replaced by a file's text.

<!-- generated: results/tables/bench_per_sample.md -->
… replaced …
<!-- end -->
"""

from __future__ import annotations

import re
from pathlib import Path

from clipbench.runs.files import atomic_text

_BLOCK = re.compile(r"(<!-- generated: (?P<path>[^ ]+) -->\n).*?(<!-- end -->)", re.S)


def embed(document: Path) -> list[str]:
    """Refill every marked block of `document` from the file it names, relative to the document.

    Returns the names of the files that are missing; their blocks stay as they are. Headings in the files are made
    bold lines, so that the document keeps its own outline. Raises RecordError, with the document as it was, where it
    cannot be written.
    """
    missing: list[str] = []

    def refill(found: re.Match[str]) -> str:
        source = document.parent / found["path"]
        if not source.exists():
            missing.append(found["path"])
            return found[0]
        text = re.sub(r"^#+ (.*)$", r"**\1**", source.read_text(encoding="utf-8").strip(), flags=re.M)
        return f"{found[1]}{text}\n{found[3]}"

    before = document.read_text(encoding="utf-8")
    after = _BLOCK.sub(refill, before)
    if after != before:
        atomic_text(document, after)
    return missing
