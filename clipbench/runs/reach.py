"""Which definitions a run can reach: from its targets along the names that each definition refers to.

Names are followed through imports and the re-exports of `__init__` files to the module that defines them; imports
within functions count. Followed are this package, the packages of the targets, and modules of a user that lie in
neither the standard library nor site-packages; any other name is an end, kept as it is called there.
"""

from __future__ import annotations

import hashlib
import importlib
import sys
from collections.abc import Callable, Iterable, Sequence
from importlib.machinery import PathFinder
from pathlib import Path
from typing import NamedTuple

from clipbench.runs.source import Definition, Module

PACKAGE = Path(__file__).parents[1]
INSTALLED = {"site-packages", "dist-packages"}
Read = Callable[[Path, str], Module]


class Found(NamedTuple):
    """Where a chain leads: a definition of a module, a module as a whole (number None), or out (module None)."""

    module: str | None
    number: int | None
    rest: tuple[str, ...]


class Reach:
    """The definitions reached from some names; `read` parses a file, `tops` are the targets' own packages."""

    def __init__(self, read: Read, tops: Iterable[str]) -> None:
        self._read = read
        self._tops = {PACKAGE.name, *tops}
        self._modules: dict[str, Module | None] = {}
        self._numbers: dict[str, dict[str, int]] = {}  # of the definition that binds a name last, by module
        self._files: dict[str, Path | None] = {}
        self.reached: dict[tuple[str, int], Definition] = {}
        self._entered: set[str] = set()

    def digest(self, names: Sequence[str]) -> str:
        """24 hexadecimal digits of all that is reached from dotted names."""
        open_ends: list[tuple[str, int]] = []
        starts = []
        for name in sorted(names):
            found = self._dotted(name)
            starts.append(self._identity(found))
            self._enter(found, open_ends)
        parts = set()
        while open_ends:
            module, number = open_ends.pop()
            parts.add(self._one(module, number, open_ends))
        return hashlib.sha256("\n".join([*starts, "", *sorted(parts)]).encode()).hexdigest()[:24]

    def _one(self, module: str, number: int, open_ends: list[tuple[str, int]]) -> str:
        """The digest of one definition, what it refers to included; that is added to what is to be done."""
        definition = self._module_at(module).definitions[number]
        identities = []
        for chain in definition.references:
            found = self._resolve(module, chain, definition.imports)
            identities.append(self._identity(found))
            self._enter(found, open_ends)
        return hashlib.sha256("\n".join([definition.raw, *identities]).encode()).hexdigest()

    def _enter(self, found: Found, open_ends: list[tuple[str, int]]) -> None:
        if found.module is None:
            return
        self._load(found.module, open_ends)
        module = self._module_at(found.module)
        for number in range(len(module.definitions)) if found.number is None else [found.number]:
            self._add(found.module, number, open_ends)

    def _add(self, module: str, number: int, open_ends: list[tuple[str, int]]) -> None:
        if (module, number) not in self.reached:
            self.reached[module, number] = self._module_at(module).definitions[number]
            open_ends.append((module, number))

    def _load(self, name: str, open_ends: list[tuple[str, int]]) -> None:
        """What a module does when it is imported, and the packages around it; imports that bind no used name too."""
        parts = name.split(".")
        for end in range(1, len(parts) + 1):
            above = ".".join(parts[:end])
            if above in self._entered or self._module(above) is None:
                continue
            self._entered.add(above)
            module = self._module_at(above)
            for number, definition in enumerate(module.definitions):
                if definition.always or any(self._own(above, definition, chain) for chain in definition.decorators):
                    self._add(above, number, open_ends)
            for target in module.effects:
                found = self._target(target, ())
                if found.module is not None:
                    self._load(found.module, open_ends)

    def _own(self, module: str, definition: Definition, chain: tuple[str, ...]) -> bool:
        """Whether a decorator is own code, which may enter what it decorates somewhere."""
        return self._resolve(module, chain, definition.imports).module is not None

    def _identity(self, found: Found) -> str:
        if found.module is None:
            return ".".join(found.rest)
        definitions = self._module_at(found.module).definitions
        raws = [d.raw for d in definitions] if found.number is None else [definitions[found.number].raw]
        return " ".join([*raws, *found.rest])

    def _dotted(self, name: str) -> Found:
        head, *rest = name.split(".")
        return self._target(head, tuple(rest))

    def _target(self, target: str, rest: tuple[str, ...]) -> Found:
        """Where "module" or "module:attribute" and the attributes after it lead."""
        name, _, attribute = target.partition(":")
        chain = (*((attribute,) if attribute else ()), *rest)
        if self._module(name) is None:
            return Found(None, None, (*name.split("."), *chain))
        return self._resolve(name, chain, {}) if chain else Found(name, None, ())

    def _resolve(self, name: str, chain: tuple[str, ...], own: dict[str, str], depth: int = 0) -> Found:
        """Where a chain leads that is used in the module called `name`, where `own` imports go first."""
        module, (head, *rest) = self._module_at(name), chain
        if head in own:
            return self._target(own[head], tuple(rest))
        if head in self._numbers[name]:
            return Found(name, self._numbers[name][head], tuple(rest))
        if head in module.imports:
            return self._target(module.imports[head], tuple(rest))
        for star in module.stars:
            if self._module(star) is not None and depth < 10:
                found = self._resolve(star, chain, {}, depth + 1)
                if found.module is not None:
                    return found
        if self._module(f"{name}.{head}") is not None:
            inner = f"{name}.{head}"
            return self._resolve(inner, tuple(rest), {}) if rest else Found(inner, None, ())
        return self._asked(name, chain)

    def _asked(self, name: str, chain: tuple[str, ...]) -> Found:
        """What the imported module itself says of a name that its source does not define (a `__getattr__`)."""
        value = getattr(importlib.import_module(name), chain[0], None) if name in sys.modules else None
        place, called = getattr(value, "__module__", None), getattr(value, "__qualname__", None)
        if isinstance(place, str) and isinstance(called, str) and place != name:
            return self._target(place, (called.split(".")[0], *chain[1:]))
        return Found(None, None, chain)

    def _module_at(self, name: str) -> Module:
        module = self._module(name)
        assert module is not None  # only names of modules that were found come here
        return module

    def _module(self, name: str) -> Module | None:
        if name not in self._modules:
            path = self._file(name)
            module = self._modules[name] = None if path is None else self._read(path, name)
            definitions = [] if module is None else module.definitions
            self._numbers[name] = {each: n for n, one in enumerate(definitions) for each in one.names}
        return self._modules[name]

    def _file(self, name: str) -> Path | None:
        """The source file of a module, None where it is not followed; nothing is imported."""
        if name not in self._files:
            top, _, rest = name.partition(".")
            if rest:
                above = self._file(name.rpartition(".")[0])
                inside = above is not None and above.name == "__init__.py"
                self._files[name] = _source(above.parent / name.rpartition(".")[2]) if inside and above else None
            else:
                self._files[name] = self._top(top)
        return self._files[name]

    def _top(self, name: str) -> Path | None:
        if name == PACKAGE.name:
            return PACKAGE / "__init__.py"
        if name in sys.stdlib_module_names:
            return None
        spec = PathFinder.find_spec(name)
        if spec is None:
            return None
        places = [spec.origin] if spec.origin else list(spec.submodule_search_locations or [])
        path = Path(places[0]) if places else None
        if path is None or (INSTALLED & set(path.parts) and name not in self._tops):
            return None
        return path if path.suffix == ".py" else _source(path)


def _source(stem: Path) -> Path | None:
    """The file of a module or package at `stem`."""
    for path in (stem.with_name(f"{stem.name}.py"), stem / "__init__.py"):
        if path.is_file():
            return path
    return None
