"""REPORT.md as one HTML file that needs nothing else: figures inside it, no script, no network, light and dark."""

from __future__ import annotations

import base64
import html
import re
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.renderer import RendererHTML
from markdown_it.token import Token

STYLE = """
:root { color-scheme: light dark; --text: #1b1b1b; --soft: #595959; --back: #fdfdfd; --line: #d5d5d5; --stripe: #f3f5f7;
  --link: #0b5cad; }
@media (prefers-color-scheme: dark) { :root { --text: #e8e8e8; --soft: #a9a9a9; --back: #16181b; --line: #3a3f45;
  --stripe: #1f2327; --link: #7db7f2; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 76rem; padding: 1rem 1.25rem 4rem; color: var(--text); background: var(--back);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
h1, h2, h3 { line-height: 1.25; }
h2 { margin-top: 2.5rem; border-bottom: 1px solid var(--line); padding-bottom: .25rem; }
a { color: var(--link); }
a:focus-visible, summary:focus-visible, .scroll:focus-visible { outline: 3px solid var(--link); }
.skip { position: absolute; left: -99rem; } .skip:focus { position: static; }
blockquote { margin: 0; padding: 0 1rem; border-left: 4px solid var(--line); color: var(--soft); }
.scroll { overflow-x: auto; margin: 1rem 0; } table { border-collapse: collapse; font-size: .875rem; }
th, td { padding: .3rem .6rem; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top; }
td[style*="right"], th[style*="right"] { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
tbody tr:nth-child(even) { background: var(--stripe); }
img { max-width: 100%; height: auto; background: #fff; padding: .5rem; border-radius: 4px; }
nav ul { columns: 18rem; padding-left: 1.2rem; } code { font-size: .9em; overflow-wrap: anywhere; }
li { font-size: .9rem; color: var(--soft); } nav li { color: inherit; }
@media print { nav, .skip { display: none; } }
"""


def page(markdown: str, folder: Path) -> str:
    """The HTML page of a Markdown text; pictures that it names, relative to `folder`, are put inside it.

    Headings get anchors and level-2 ones a table of contents. The same text and pictures give the same bytes.
    """
    parser = MarkdownIt("commonmark", {"html": False}).enable("table")
    tokens = parser.parse(markdown)
    contents = _anchors(tokens)
    for token in tokens:
        for child in token.children or []:
            if child.type == "image":
                child.attrs["src"] = embedded(folder / str(child.attrs["src"]))
                child.attrs["loading"] = "lazy"
    body = RendererHTML().render(tokens, parser.options, {})
    body = body.replace("<table>", '<div class="scroll" tabindex="0" role="region" aria-label="table"><table>')
    body = body.replace("</table>", "</table></div>")
    links = "\n".join(f'<li><a href="#{anchor}">{html.escape(text)}</a></li>' for text, anchor in contents)
    title = next((tokens[i + 1].content for i, t in enumerate(tokens) if t.tag == "h1"), "Results")
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n<link rel="icon" href="data:,">\n'
        f"<title>{html.escape(title)} – clipbench</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        '<a class="skip" href="#content">Skip to the content</a>\n'
        f'<nav aria-label="Contents"><ul>\n{links}\n</ul></nav>\n<main id="content">\n{body}</main>\n</body>\n</html>\n'
    )


def _anchors(tokens: list[Token]) -> list[tuple[str, str]]:
    """Give every heading an id of its own; (text, id) of those of level 2."""
    seen: dict[str, int] = {}
    contents = []
    for i, token in enumerate(tokens):
        if token.type != "heading_open":
            continue
        text = tokens[i + 1].content
        slug = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") or "part"
        seen[slug] = seen.get(slug, 0) + 1
        anchor = slug if seen[slug] == 1 else f"{slug}-{seen[slug]}"
        token.attrs["id"] = anchor
        if token.tag == "h2":
            contents.append((text, anchor))
    return contents


def embedded(picture: Path) -> str:
    """A PNG or SVG file as a data URI. Raises ValueError for another kind."""
    kinds = {".png": "image/png", ".svg": "image/svg+xml"}
    if picture.suffix not in kinds:
        raise ValueError(f"picture must be a PNG or SVG file, got {picture.name}")
    return f"data:{kinds[picture.suffix]};base64,{base64.b64encode(picture.read_bytes()).decode()}"
