"""Which definitions a run can reach: from its targets along the names that each definition refers to.

Names are followed through imports and the re-exports of `__init__` files to the module that defines them; imports
within functions count. Followed are this package, the packages of the targets, and modules of a user that lie in
neither the standard library nor site-packages (folders without `__init__` and editable installations too); any other
name is an end, kept as it is called there.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterable, Sequence
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from typing import NamedTuple

from clipbench.runs.source import Definition, Module

PACKAGE = Path(__file__).parents[1]
INIT = "__init__.py"
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
        self._numbers: dict[str, dict[str, list[int]]] = {}  # of the definitions that bind a name, by module
        self._files: dict[str, Path | None] = {}
        self.reached: dict[tuple[str, int], Definition] = {}
        self._entered: set[str] = set()
        self._open: set[tuple[str, str]] = set()  # the imported names that are being followed

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
        """One more definition, with what bound its names before: it may be made of that, as in `f = cached(f)`."""
        if (module, number) in self.reached:
            return
        content = self._module_at(module)
        self.reached[module, number] = content.definitions[number]
        open_ends.append((module, number))
        for name in content.definitions[number].names:
            for other in self._numbers[module][name]:
                self._add(module, other, open_ends)
            if name in content.imports:
                self._enter(self._target(content.imports[name], ()), open_ends)

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
            for target in self._effects(above):
                found = self._target(target, ())
                if found.module is not None:
                    self._load(found.module, open_ends)

    def _effects(self, name: str) -> list[str]:
        """What a module imports and does not use. This package's own `__init__` files only hand names on; another
        package's may import a module for what that does.
        """
        path = self._file(name)
        handing_on = name.partition(".")[0] == PACKAGE.name and path is not None and path.name == INIT
        return [] if handing_on else self._module_at(name).effects

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
        while chain and self._module(name) is None and self._file(name) is not None:  # a folder without __init__
            name, chain = f"{name}.{chain[0]}", chain[1:]
        if self._module(name) is None:
            return Found(None, None, (*name.split("."), *chain))
        return self._resolve(name, chain, {}) if chain else Found(name, None, ())

    def _resolve(self, name: str, chain: tuple[str, ...], own: dict[str, str], depth: int = 0) -> Found:
        """Where a chain leads that is used in the module called `name`, where `own` imports go first."""
        module, (head, *rest) = self._module_at(name), chain
        if head in own:
            return self._target(own[head], tuple(rest))
        if head in self._numbers[name]:
            return Found(name, self._numbers[name][head][-1], tuple(rest))
        if head in module.imports and (name, head) not in self._open:
            # `from . import part` in a package's __init__ leads to itself, then to the part.
            self._open.add((name, head))
            try:
                return self._target(module.imports[head], tuple(rest))
            finally:
                self._open.remove((name, head))
        for star in module.stars:
            if self._module(star) is not None and depth < 10:
                found = self._resolve(star, chain, {}, depth + 1)
                if found.module is not None:
                    return found
        if self._file(f"{name}.{head}") is not None:
            return self._target(f"{name}.{head}", tuple(rest))
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
            module = self._modules[name] = None if path is None or path.is_dir() else self._read(path, name)
            numbers: dict[str, list[int]] = {}
            for number, one in enumerate([] if module is None else module.definitions):
                for each in one.names:
                    numbers.setdefault(each, []).append(number)
            self._numbers[name] = numbers
        return self._modules[name]

    def _file(self, name: str) -> Path | None:
        """The source file of a module, or a package's folder where that has no `__init__`; nothing is imported.

        None where the name is not followed.
        """
        if name not in self._files:
            above, _, last = name.rpartition(".")
            self._files[name] = _inside(self._file(above), last) if above else self._top(name)
        return self._files[name]

    def _top(self, name: str) -> Path | None:
        if name == PACKAGE.name:
            return PACKAGE / INIT
        spec = None if name in sys.stdlib_module_names else _spec(name)
        places = [] if spec is None else [spec.origin] if spec.origin else list(spec.submodule_search_locations or [])
        path = Path(places[0]) if places else None
        if path is None or (INSTALLED & set(path.parts) and name not in self._tops):
            return None
        return path if path.suffix == ".py" or path.is_dir() else None


def _spec(name: str) -> ModuleSpec | None:
    """Where a module at the top is found: on the path, or by the finder that an editable installation brings."""
    found = PathFinder.find_spec(name)
    if found is None:
        with contextlib.suppress(ImportError, ValueError):
            found = importlib.util.find_spec(name)
    return found


def _inside(package: Path | None, name: str) -> Path | None:
    """The file, or the folder, of a module within a package."""
    if package is None or (package.name != INIT and not package.is_dir()):
        return None
    stem = (package.parent if package.name == INIT else package) / name
    places = (stem.with_name(f"{name}.py"), stem / INIT)
    return next((path for path in places if path.is_file()), stem if stem.is_dir() else None)
