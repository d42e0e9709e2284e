"""Sphinx's configuration: the guides of this folder as they are, and an API made from docstrings."""

from __future__ import annotations

import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from docstrings import as_rst

import clipbench

project, author, copyright = "clipbench", "the authors of clipbench", "the authors of clipbench"
version = release = clipbench.__version__
extensions = ["sphinx.ext.autodoc", "myst_parser"]
exclude_patterns = ["_build"]
html_theme, html_title = "furo", f"clipbench {release}"
html_show_sourcelink = False
myst_heading_anchors = 3
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True


def _rewrite(app: object, what: str, name: str, found: object, options: object, lines: list[str]) -> None:
    lines[:] = as_rst(lines)


def _download(app: object, page: str, source: list[str]) -> None:
    """A table of the results is a file beside the pages, and no page: it is offered to be downloaded."""
    source[0] = re.sub(r"\[([^\]]+)\]\((\.\./results/tables/[^)]+)\)", r"{download}`\1 <\2>`", source[0])


def setup(app: object) -> None:
    """Our docstrings are plain text, and links lead out of this folder."""
    app.connect("autodoc-process-docstring", _rewrite)  # type: ignore[attr-defined]
    app.connect("source-read", _download)  # type: ignore[attr-defined]
