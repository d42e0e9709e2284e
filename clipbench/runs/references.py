"""What a statement refers to, and what of it says nothing to a run: its imports and docstrings."""

from __future__ import annotations

import ast

Chain = tuple[str, ...]  # a name and the attributes after it
IMPORTERS = ("import_module", "__import__")


def bind(node: ast.Import | ast.ImportFrom, home: str, imports: dict[str, str], stars: list[str]) -> None:
    """Enter what an import statement binds."""
    if isinstance(node, ast.Import):
        for alias in node.names:
            imports[alias.asname or alias.name.partition(".")[0]] = (
                alias.name if alias.asname else alias.name.partition(".")[0]
            )
        return
    if node.module == "__future__":
        return
    above = home.split(".")[: len(home.split(".")) - node.level + 1] if node.level else []
    module = ".".join([*above, *([node.module] if node.module else [])])
    for alias in node.names:
        if alias.name == "*":
            stars.append(module)
        else:
            imports[alias.asname or alias.name] = f"{module}:{alias.name}"


class Finder(ast.NodeVisitor):
    """Collects a statement's references, its own imports, and what its tokens are to leave out.

    Annotations are not followed: they bind nothing when the code runs.
    """

    def __init__(self, home: str) -> None:
        self.home = home
        self.placed: list[tuple[tuple[int, int], tuple[int, int], Chain]] = []
        self.loose: list[Chain] = []  # within f-strings, where older versions of Python know no places
        self.imports: dict[str, str] = {}
        self.dropped: list[ast.stmt] = []
        # Where the element, and where the whole, of each tuple of one ends: its comma is no layout.
        self.singles: list[tuple[tuple[int, int], tuple[int, int]]] = []
        self.decorators: list[Chain] = []
        self._in_string = 0

    def visit_Import(self, node: ast.Import) -> None:
        self._import(node)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        self._import(node)

    def _import(self, node: ast.Import | ast.ImportFrom) -> None:
        """Enter its names; of two imports of one name (`try` … `except ImportError`) either may be meant."""
        bound: dict[str, str] = {}
        stars: list[str] = []
        bind(node, self.home, bound, stars)
        for name, target in bound.items():
            if self.imports.get(name, target) != target:
                self.refer(self.imports[name])
        for module in stars:
            self.refer(module)
        self.imports |= bound
        self.dropped.append(node)

    def refer(self, target: str) -> None:
        """Refer to what an import brings, whether its name is used or not."""
        self.imports[f"import {target}"] = target
        self.loose.append((f"import {target}",))

    def visit_Call(self, node: ast.Call) -> None:
        """`import_module("a.b")` and `__import__("a.b")` import as well; all of that module counts."""
        called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        first = node.args[0] if node.args else None
        if called in IMPORTERS and isinstance(first, ast.Constant) and isinstance(first.value, str):
            name = first.value.lstrip(".")
            above = self.home.split(".")[: len(self.home.split(".")) - (len(first.value) - len(name)) + 1]
            module = ".".join([*above, name]) if first.value.startswith(".") else first.value
            self.refer(module)
        self.generic_visit(node)

    def visit_Name(self, node: ast.Name) -> None:
        if isinstance(node.ctx, ast.Load):
            self._found(node, (node.id,))

    def visit_Attribute(self, node: ast.Attribute) -> None:
        chain, inner = [node.attr], node.value
        while isinstance(inner, ast.Attribute):
            chain.append(inner.attr)
            inner = inner.value
        if isinstance(inner, ast.Name) and isinstance(inner.ctx, ast.Load):
            self._found(node, (inner.id, *reversed(chain)))
        else:
            self.visit(node.value)

    def _found(self, node: ast.expr, chain: Chain) -> None:
        if self._in_string:
            self.loose.append(chain)
        else:
            self.placed.append(((node.lineno, node.col_offset), _end(node), chain))

    def visit_JoinedStr(self, node: ast.JoinedStr) -> None:
        self._in_string += 1
        self.generic_visit(node)
        self._in_string -= 1

    def visit_Tuple(self, node: ast.Tuple) -> None:
        if len(node.elts) == 1 and not self._in_string:
            self.singles.append((_end(node.elts[0]), _end(node)))
        self.generic_visit(node)

    def visit_MatchSequence(self, node: ast.MatchSequence) -> None:
        if len(node.patterns) == 1:
            last = node.patterns[0]
            self.singles.append(((last.end_lineno, last.end_col_offset), (node.end_lineno, node.end_col_offset)))
        self.generic_visit(node)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        self.visit(node.target)
        if node.value is not None:
            self.visit(node.value)

    def visit_arg(self, node: ast.arg) -> None:
        pass

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        self._function(node)

    def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> None:
        self._function(node)

    def _function(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        self._decorators(node.decorator_list)
        self.visit(node.args)
        self._body(node.body)

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        self._decorators(node.decorator_list)
        for each in [*node.bases, *node.keywords]:
            self.visit(each)
        self._body(node.body)
        for statement in node.body:
            if isinstance(statement, ast.Import | ast.ImportFrom):  # its names are the class's own attributes
                bound: dict[str, str] = {}
                bind(statement, self.home, bound, [])
                for target in bound.values():
                    self.refer(target)

    def _decorators(self, nodes: list[ast.expr]) -> None:
        for node in nodes:
            before = len(self.placed)
            self.visit(node)
            self.decorators += [chain for _, _, chain in self.placed[before : before + 1]]

    def _body(self, body: list[ast.stmt]) -> None:
        first = body[0]
        if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str):
            self.dropped.append(first)
            body = body[1:]
        for node in body:
            self.visit(node)


def _end(node: ast.expr) -> tuple[int, int]:
    return node.end_lineno or 0, node.end_col_offset or 0  # never None in what was parsed from text
