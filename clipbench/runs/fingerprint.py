"""The fingerprint of the code that made a result."""

from __future__ import annotations

import ast
import functools
import hashlib
import inspect
import pkgutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from clipbench.runs.provenance import PACKAGE

RESULT_CODE = (
    "training", "estimators", "clipping", "per_sample", "spectral", "data", "models", "studies",
)  # fmt: skip


def _normalised(path: Path) -> str:
    """The module's code without comments, docstrings and layout, which cannot change a result."""
    tree = ast.parse(path.read_bytes())
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            node.body = node.body[1:] or [ast.Pass()]
    return ast.unparse(tree)


def foreign_targets(config: Any) -> frozenset[str]:
    """The `_target_`s of a config that lie outside this package: a user's own method, model or dataset."""
    if not isinstance(config, Mapping):
        return frozenset()
    found = frozenset().union(*(foreign_targets(value) for value in config.values()))
    target = config.get("_target_")
    if isinstance(target, str) and not target.startswith(f"{PACKAGE.name}."):
        found |= {target}
    return found


def fingerprint(config: Mapping[str, Any]) -> str:
    """12 hexadecimal digits of the code that the run of `config` can reach."""
    return _digest(foreign_targets(config))


@functools.cache
def _digest(foreign: frozenset[str]) -> str:
    digest = hashlib.sha256()
    for target in sorted(foreign):
        source = inspect.getsourcefile(inspect.unwrap(pkgutil.resolve_name(target)))
        if source is not None:
            digest.update(f"{target}\n{_normalised(Path(source))}\n".encode())
    for name in RESULT_CODE:
        for file in sorted((PACKAGE / name).rglob("*.py")):
            digest.update(f"{file.relative_to(PACKAGE)}\n{_normalised(file)}\n".encode())
    return digest.hexdigest()[:12]
