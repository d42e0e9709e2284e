"""One source file as definitions: what each says, without comments, docstrings and layout, and what it refers to.

A definition is a function, a class or an assignment at the top of a module. Its tokens are hashed with every
reference to something of the module (an import, another definition) taken out, and the references are kept beside:
so a hash does not depend on where what it refers to lies, nor on the name under which it was imported. Tokens, not a
syntax tree: they are the same under every version of Python (f-strings, which version 3.12 began to split, are put
together again).
"""

from __future__ import annotations

import ast
import builtins
import hashlib
import io
import tokenize
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from clipbench.runs.references import Chain, Finder, bind

Position = tuple[int, int]  # line from 1, column from 0, in characters
LAYOUT = {tokenize.NL, tokenize.COMMENT, tokenize.ENCODING, tokenize.ENDMARKER}
MARKS = {tokenize.NEWLINE: "\n", tokenize.INDENT: "{{", tokenize.DEDENT: "}}"}


class Definition(NamedTuple):
    """`raw`: digest of the tokens. `references`: chains in order. `imports`: names that it imports for itself.

    `always`: whether it runs for its effect whenever the module is imported, referred to or not.
    """

    names: list[str]
    raw: str
    references: list[Chain]
    imports: dict[str, str]
    decorators: list[Chain]
    always: bool


class Module(NamedTuple):
    """`imports`: name → "module" or "module:attribute"; `stars`: modules imported by *; `effects`: unused imports."""

    definitions: list[Definition]
    imports: dict[str, str]
    stars: list[str]
    effects: list[str]


def read(text: str, name: str, package: bool) -> Module:
    """The module called `name` with this source; `package` says that it is a package's `__init__`."""
    tree = ast.parse(text)
    source = _Source(text)
    home = name if package else name.rpartition(".")[0]
    imports: dict[str, str] = {}
    stars: list[str] = []
    items: list[tuple[ast.stmt, Finder]] = []
    for node in tree.body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            bind(node, home, imports, stars)
        elif not _idle(node):
            finder = Finder(home)
            finder.visit(node)
            items.append((node, finder))
            if _is_block(node):
                bound = {name: target for name, target in finder.imports.items() if not name.startswith("import ")}
                for target in bound.values():  # another block, or this one's other branch, may bind the same names
                    finder.refer(target)
                imports |= bound
    names = {n for node, _ in items for n in _defined(node)} | set(imports)
    definitions = [_definition(node, finder, names, bool(stars), source) for node, finder in items]
    used = {chain[0] for one in definitions for chain in one.references}
    effects = [target for bound, target in imports.items() if bound not in used]
    # `import a.b` binds a alone, and runs b.
    effects += [one.name for node in tree.body if isinstance(node, ast.Import) for one in node.names if "." in one.name]
    return Module(definitions, imports, stars, effects)


def _definition(node: ast.stmt, finder: Finder, names: set[str], open_names: bool, source: _Source) -> Definition:
    def refers(chain: Chain) -> bool:
        head = chain[0]
        return head in names or head in finder.imports or (open_names and not hasattr(builtins, head))

    placed = [(start, end, chain) for start, end, chain in finder.placed if refers(chain)]
    loose = sorted(chain for chain in finder.loose if refers(chain))
    spans = sorted((source.place(*start), source.place(*end), chain) for start, end, chain in placed)
    tokens = source.tokens(_begin(node), node, [span[:2] for span in spans], finder.dropped, finder.singles)
    digest = hashlib.sha256("\x00".join(tokens).encode()).hexdigest()[:24]
    chains = [chain for _, _, chain in spans] + loose
    return Definition(
        sorted(_defined(node)), digest, chains, finder.imports, [c for c in finder.decorators if refers(c)],
        _is_block(node) or not _defined(node),
    )  # fmt: skip


def _begin(node: ast.stmt) -> tuple[int, int]:
    decorators = getattr(node, "decorator_list", [])
    return (decorators[0].lineno, 0) if decorators else (node.lineno, node.col_offset)


def _is_block(node: ast.stmt) -> bool:
    return isinstance(node, ast.If | ast.Try | ast.With | ast.For | ast.While)


def _idle(node: ast.stmt) -> bool:
    """What does nothing when a run imports the module: docstrings, __all__, blocks for type checkers and commands,
    and the question whether an extra is installed.
    """
    if isinstance(node, ast.Expr):
        return isinstance(node.value, ast.Constant) or ast.unparse(node.value).startswith("need(")
    if isinstance(node, ast.Assign):
        return [ast.unparse(target) for target in node.targets] == ["__all__"]
    if isinstance(node, ast.If):
        return ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING", "__name__ == '__main__'")
    return isinstance(node, ast.AnnAssign) and node.value is None


def _defined(node: ast.stmt) -> set[str]:
    """The names that a statement at the top of a module defines."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return {node.name}
    if _is_block(node):
        return {name for inner in ast.iter_child_nodes(node) if isinstance(inner, ast.stmt) for name in _defined(inner)}
    targets: Iterable[ast.expr] = []
    if isinstance(node, ast.Assign):
        targets = node.targets
    elif isinstance(node, ast.AnnAssign):
        targets = [node.target]
    elif type(node).__name__ == "TypeAlias":  # Python 3.12
        targets = [node.name]  # type: ignore[attr-defined]
    plain = [t for target in targets for t in (target.elts if isinstance(target, ast.Tuple) else [target])]
    return {t.id for t in plain if isinstance(t, ast.Name)} if all(isinstance(t, ast.Name) for t in plain) else set()


class _Source:
    """The tokens of a file, by place."""

    def __init__(self, text: str) -> None:
        self.lines = text.splitlines(keepends=True)
        self._all = list(_joined(tokenize.generate_tokens(io.StringIO(text).readline), self.lines))
        self._starts = [token[1] for token in self._all]

    def place(self, line: int, column: int) -> Position:
        """A place of the syntax tree, which counts bytes, in characters."""
        text = self.lines[line - 1]
        return line, column if text.isascii() else len(text.encode()[:column].decode())

    def span(self, node: Any) -> tuple[Position, Position]:
        return self.place(node.lineno, node.col_offset), self.place(node.end_lineno, node.end_col_offset)

    def tokens(
        self, begin: tuple[int, int], node: ast.stmt, references: list[tuple[Position, Position]],
        dropped: list[ast.stmt], singles: list[tuple[tuple[int, int], tuple[int, int]]],
    ) -> list[str]:  # fmt: skip
        """What is left of a statement: each reference is one mark."""
        start, (_, end) = self.place(*begin), self.span(node)
        inside = self._all[bisect_left(self._starts, start) : bisect_left(self._starts, end)]
        gone = [self.span(statement) for statement in dropped]
        kept = [(self.place(*ends[0]), self.place(*ends[1])) for ends in singles]
        found: list[str] = []
        after_gone, reference = False, 0
        for number, (kind, first, last, text) in enumerate(inside):
            if kind in (tokenize.INDENT, tokenize.DEDENT):
                found.append(MARKS[kind])
                continue
            if any(a <= first and last <= b for a, b in gone):
                after_gone = True
                continue
            ends_gone, after_gone = after_gone and kind == tokenize.NEWLINE, False
            while reference < len(references) and references[reference][1] <= first:
                reference += 1
            covered = reference < len(references) and references[reference][0] <= first
            if covered:
                found += ["§"] * (first == references[reference][0])
            elif not ends_gone and not _closing_comma(inside, number, kept):
                found.append(MARKS.get(kind, text))
        return found


Token = tuple[int, Position, Position, str]


def _closing_comma(tokens: list[Token], number: int, singles: list[tuple[Position, Position]]) -> bool:
    """Whether a token is a comma before a closing bracket that only layout put there, not a tuple of one."""
    _, first, _, text = tokens[number]
    if text != "," or number + 1 == len(tokens) or tokens[number + 1][3] not in (")", "]", "}"):
        return False
    return not any(element <= first <= whole for element, whole in singles)


def _joined(tokens: Iterable[tokenize.TokenInfo], lines: list[str]) -> Iterator[Token]:
    """(type, start, end, text) of every token that is no layout; f-strings in one piece under every version."""
    starts = {getattr(tokenize, f"{kind}_START", -1) for kind in ("FSTRING", "TSTRING")}
    ends = {getattr(tokenize, f"{kind}_END", -1) for kind in ("FSTRING", "TSTRING")}
    depth, begin = 0, (0, 0)
    for token in tokens:
        if token.type in starts and token.type != -1:
            begin = token.start if depth == 0 else begin
            depth += 1
        elif token.type in ends and token.type != -1:
            depth -= 1
            if depth == 0:
                yield tokenize.STRING, begin, token.end, _slice(lines, begin, token.end)
        elif depth == 0 and token.type not in LAYOUT:
            yield token.type, token.start, token.end, token.string


def _slice(lines: list[str], start: Position, end: Position) -> str:
    if start[0] == end[0]:
        return lines[start[0] - 1][start[1] : end[1]]
    middle = lines[start[0] : end[0] - 1]
    return "".join([lines[start[0] - 1][start[1] :], *middle, lines[end[0] - 1][: end[1]]])
