"""The package's docstrings, which are plain text, as reStructuredText.

Of their own they have: paragraphs, `code`, lists with a dash, entries (`name: what it is`, with the following lines
indented), and whatever is indented by four after an empty line, which is code or a formula. Nothing else means
anything: no star, bar or underscore is markup.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

ENTRY = re.compile(r"^([A-Za-z_][\w, ]*): (?=\S)")
MARKUP = re.compile(r"([\\*|_])")


def as_rst(lines: Sequence[str]) -> list[str]:
    """The lines of a docstring, taken out by its margin, as those of a document."""
    found: list[str] = []
    for block in blocks(lines):
        found += [*rewritten(block), ""]
    return found


def blocks(lines: Sequence[str]) -> list[list[str]]:
    """Lines between empty ones; indented ones that follow each other are one block, empty lines in it and all."""
    found: list[list[str]] = []
    gap = True
    for line in lines:
        if not line.strip():
            gap = True
            continue
        if gap and found and is_code(found[-1]) and line.startswith("    "):
            found[-1] += ["", line]
        elif gap:
            found.append([line])
        else:
            found[-1].append(line)
        gap = False
    return found


def is_code(block: Sequence[str]) -> bool:
    """Whether all of it is indented."""
    return all(line.startswith("    ") or not line for line in block)


def rewritten(block: Sequence[str]) -> list[str]:
    """One block."""
    if is_code(block) or block[0].startswith(">>> "):
        return ["::", "", *(f"    {line}" for line in block)]
    found: list[str] = []
    for line in block:
        entry = ENTRY.match(line)
        if entry and (not found or found[0].startswith("- **")):
            found.append(f"- **{entry[1]}**: {escaped(line[entry.end() :])}")
        elif line.startswith("- ") or not found:
            found.append(("- " if line.startswith("- ") else "") + escaped(line.removeprefix("- ")))
        else:
            found.append(("  " if found[0].startswith("- ") else "") + escaped(line.strip()))
    return found


def escaped(text: str) -> str:
    """A line in which `code` is code and nothing else is markup."""
    parts = re.split(r"(`+[^`]+`+)", text.removesuffix("::") + (":" if text.endswith("::") else ""))
    return "".join(
        f"``{part.strip('`')}``\\ " if part.startswith("`") else MARKUP.sub(r"\\\1", part).replace("`", r"\`")
        for part in parts
    )
