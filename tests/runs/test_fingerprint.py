"""What changes a run's fingerprint and what does not: a table of edits to a copy of the package and to own modules."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
import tokenize
from collections.abc import Iterator
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest

from clipbench.cli.compose import compose
from clipbench.config import schema
from clipbench.runs import fingerprint as fingerprints
from clipbench.runs import reach, source
from clipbench.runs.fingerprint import Sources, digest, fingerprint, roots

OWN = {
    "own/__init__.py": "",
    "own/method.py": '''"""A user's method."""
from functools import partial

from clipbench.clipping import NoClip
from own import helpers, registry
from own.helpers import scaled as times

LIMIT = 3.0
UNUSED = 1


class Mine(NoClip):
    """Clips nothing."""

    def __init__(self, factor: float = 2.0) -> None:
        super().__init__()
        self.factor = times(factor)  # a comment

    def late(self):
        from own.lazy import value

        return value() + LIMIT


class Other:
    def number(self):
        return 1


@registry.known
def entered():
    return 4
''',
    "own/helpers.py": "import math\n\n\ndef scaled(x):\n    return _inner(x) * 2\n\n\n"
    "def _inner(x):\n    return math.sqrt(x)\n\n\ndef alone():\n    return 1\n",
    "own/lazy.py": "from own.deep import *\n\n\ndef value():\n    return deep_value\n",
    "own/deep.py": "deep_value = (1, 2)\nother_value = 2\n",
    "own/registry.py": "KNOWN = {}\n\n\ndef known(f):\n    KNOWN[f.__name__] = f\n    return f\n",
}  # fmt: skip

# (what is edited, file, old text, new text, whether the fingerprint is the same)
EDITS = [
    ("a comment", "own/method.py", "  # a comment", "  # another one", True),
    ("a docstring", "own/method.py", '"""Clips nothing."""', '"""Clips a little."""', True),
    ("no docstring", "own/method.py", '    """Clips nothing."""\n\n', "", True),
    ("the module's docstring", "own/method.py", '"""A user\'s method."""', '"""Somebody\'s."""', True),
    ("layout", "own/method.py", "self.factor = times(factor)",
     "self.factor = times(\n            factor,\n        )", True),
    ("blank lines", "own/method.py", "LIMIT = 3.0", "\n\n\nLIMIT = 3.0", True),
    ("an import's order", "own/method.py", "import helpers, registry", "import registry, helpers", True),
    ("an unused import", "own/method.py", "from functools import partial", "from functools import reduce", True),
    ("an import's new name", "own/method.py", "times", "twice", True),
    ("the same by another path", "own/method.py", "times(factor)", "helpers.scaled(factor)", True),
    ("a constant that is not used", "own/method.py", "UNUSED = 1", "UNUSED = 2", True),
    ("another class' method", "own/method.py", "return 1", "return 2", True),
    ("a new class", "own/method.py", "class Other:", "class New:\n    pass\n\n\nclass Other:", True),
    ("a function that is not used", "own/helpers.py", "return 1", "return 2", True),
    ("a value that * imports and nothing uses", "own/deep.py", "other_value = 2", "other_value = 3", True),
    ("a type annotation's module", "own/method.py", "LIMIT = 3.0", "LIMIT: float = 3.0", False),
    ("a default in a signature", "own/method.py", "factor: float = 2.0", "factor: float = 2.5", False),
    ("a new method", "own/method.py", "    def late", "    def early(self):\n        return 0\n\n    def late", False),
    ("another method's body", "own/method.py", "+ LIMIT", "- LIMIT", False),
    ("a constant that is used", "own/method.py", "LIMIT = 3.0", "LIMIT = 4.0", False),
    ("the base class", "own/method.py", "class Mine(NoClip)", "class Mine(Other, NoClip)", False),
    ("indentation that means something", "own/method.py", "        self.factor = times(factor)",
     "        if factor:\n            pass\n        self.factor = times(factor)", False),
    ("another helper of one name", "own/method.py", "from own.helpers import scaled as times",
     "from own.deep import other_value as times", False),
    ("what a decorator enters", "own/method.py", "return 4", "return 5", False),
    ("a helper of an own class", "own/helpers.py", "* 2", "* 3", False),
    ("a helper's helper", "own/helpers.py", "math.sqrt", "math.exp", False),
    ("a library's function of one name", "own/helpers.py", "import math", "import cmath as math", False),
    ("what a function imports late", "own/lazy.py", "return deep_value", "return deep_value * 2", False),
    ("a value imported by *", "own/deep.py", "(1, 2)", "(1, 3)", False),
    ("a tuple of one", "own/deep.py", "(1, 2)", "(1,)", False),
    ("the trainer's loop", "clipbench/training/trainer.py", "self.done += 1", "self.done += 2", False),
    ("a comment in the trainer", "clipbench/training/trainer.py", "  # the caller asked", "", True),
    ("the final metrics", "clipbench/runs/finals.py", "not math.isfinite(value)", "math.isnan(value)", False),
    ("the layout of checkpoints", "clipbench/runs/checkpoint.py", "LAYOUT = 2", "LAYOUT = 3", False),
    ("an argument's check", "clipbench/config/checks.py", "value >= 0, argument", "value > 0, argument", False),
    ("another optimizer", "clipbench/training/optimizers/muons.py", "def muon(", "def muon_anew(", True),
    ("another method's rule", "clipbench/clipping/value.py", "class ValueClip", "class ValueClips", True),
    ("another model", "clipbench/models/alexnet.py", "class AlexNet", "class AlexNets", True),
    ("tracking", "clipbench/tracking/tracker.py", "CAPACITY = 1000", "CAPACITY = 1001", True),
    ("a table", "clipbench/analysis/tables.py", "import", "import sys\nimport", True),
    ("an option", "clipbench/config/options.py", "    threads: Count | None", "    threads: Count\n    new: int", True),
]  # fmt: skip


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the package with a user's own beside it, none of whose files was written a moment ago."""
    root = tmp_path_factory.mktemp("tree")
    shutil.copytree(reach.PACKAGE, root / "clipbench", ignore=shutil.ignore_patterns("__pycache__", "conf"))
    for name, text in OWN.items():
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text(text)
    for path in root.rglob("*.py"):
        os.utime(path, (1e9, 1e9))
    return root


@pytest.fixture(scope="module")
def sources() -> Sources:
    return Sources()


@pytest.fixture
def here(tree: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setattr(reach, "PACKAGE", tree / "clipbench")
    monkeypatch.setattr(sys, "path", [str(tree), *sys.path])
    yield tree
    sys.path_importer_cache.pop(str(tree), None)


NAMES = frozenset({"own.method.Mine", *roots(schema.used(compose([])))})


@pytest.mark.parametrize(("file", "old", "new", "same"), [edit[1:] for edit in EDITS], ids=[edit[0] for edit in EDITS])
def test_an_edit(file: str, old: str, new: str, same: bool, here: Path, sources: Sources) -> None:
    before = digest(NAMES, sources)
    path = here / file
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 99 if old == "times" else 1))
    try:
        after = digest(NAMES, sources)
    finally:
        path.write_text(text)
        os.utime(path, (1e9, 1e9))
    assert (after == before) is same
    assert digest(NAMES, sources) == before


def test_a_moved_module_changes_nothing(here: Path, sources: Sources) -> None:
    """helpers.py goes to another folder under another name; whoever imports it follows."""
    before = digest(NAMES, sources)
    (here / "own/inner").mkdir()
    moved = [here / "own/inner/__init__.py", here / "own/inner/arithmetic.py"]
    moved[0].write_text("from own.inner.arithmetic import scaled\n")
    shutil.move(here / "own/helpers.py", moved[1])
    method = here / "own/method.py"
    text = method.read_text()
    method.write_text(text.replace("from own.helpers import scaled as times", "from own.inner import scaled as times"))
    try:
        assert digest(NAMES, sources) == before
    finally:
        method.write_text(text)
        shutil.move(moved[1], here / "own/helpers.py")
        shutil.rmtree(here / "own/inner")
        for path in (method, here / "own/helpers.py"):
            os.utime(path, (1e9, 1e9))


def test_two_methods_share_the_trainer_and_not_each_other() -> None:
    sgd, clip = (fingerprint(schema.used(compose([f"method={name}"]))) for name in ("sgd", "ps_clip"))
    assert sgd != clip


def test_a_lazy_name_of_a_package_is_followed(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package that hands names on by `__getattr__` is asked where they come from."""
    (here / "lazy_names").mkdir(exist_ok=True)
    (here / "lazy_names/__init__.py").write_text(
        "import importlib\n\n\ndef __getattr__(name):\n"
        "    return getattr(importlib.import_module('lazy_names.inside'), name)\n"
    )
    inside = here / "lazy_names/inside.py"
    inside.write_text("def f():\n    return 1\n")
    import lazy_names  # type: ignore[import-not-found]  # noqa: F401

    before = digest(frozenset({"lazy_names.f"}), Sources())
    inside.write_text("def f():\n    return 2\n")
    assert digest(frozenset({"lazy_names.f"}), Sources()) != before


A = "class A:\n    x = 1\n"
CALLS = "\n\nclass A:\n    def g(self):\n        return f(2)\n"
F = "def f(x):\n    return 1\n"
# (what is edited, files of the user's own, file, old text, new text); the target is `theirs.rule.A`
REACHED = [
    ("a function that is bound anew", {"theirs/rule.py":
     f"import functools\n\n\n{F}\n\nf = functools.cache(f)\n{CALLS}"}, "theirs/rule.py", "return 1", "return 2"),
    ("a class that extends one of its name", {"theirs/rule.py": f"{A}\n\nclass A(A):\n    y = 1\n"},
     "theirs/rule.py", "x = 1", "x = 2"),
    ("an imported name that is wrapped", {"theirs/part.py": F, "theirs/rule.py":
     f"from theirs.part import f\n\n\ndef f(x, _f=f):\n    return _f(x)\n{CALLS}"},
     "theirs/part.py", "return 1", "return 2"),
    ("what a package imports for its effect", {"theirs/__init__.py": "from theirs import part\n", "theirs/rule.py": A,
     "theirs/part.py": "from theirs.rule import A\n\nA.x = 2\n"}, "theirs/part.py", "= 2", "= 3"),
    ("the same by its dotted name", {"theirs/__init__.py": "import theirs.part\n", "theirs/rule.py": A,
     "theirs/part.py": "import theirs.rule\n\ntheirs.rule.A.x = 2\n"}, "theirs/part.py", "= 2", "= 3"),
    ("a package's part that it imports itself", {"theirs/__init__.py": "from . import rule\n", "theirs/rule.py": A},
     "theirs/rule.py", "x = 1", "x = 2"),
    ("a helper of a package without __init__", {"theirs/inner/part.py": F, "theirs/rule.py":
     "from theirs.inner import part\n\n\nclass A:\n    def g(self):\n        return part.f(2)\n"},
     "theirs/inner/part.py", "return 1", "return 2"),
    ("what import_module brings", {"theirs/part.py": F, "theirs/rule.py":
     "import importlib\n\n\nclass A:\n    def g(self):\n        return importlib.import_module('theirs.part').f(2)\n"},
     "theirs/part.py", "return 1", "return 2"),
    ("what import_module brings from beside", {"theirs/part.py": F, "theirs/rule.py":
     "from importlib import import_module\n\n\nclass A:\n    part = import_module('.part', __package__)\n"},
     "theirs/part.py", "return 1", "return 2"),
    ("what __import__ brings", {"theirs/part.py": F, "theirs/rule.py":
     "class A:\n    part = __import__('theirs.part').part\n"}, "theirs/part.py", "return 1", "return 2"),
    ("the first of two imports of one name", {"theirs/part.py": F, "theirs/slow.py": "def f(x):\n    return 3\n",
     "theirs/rule.py": "try:\n    from theirs.part import f\nexcept ImportError:\n    from theirs.slow import f\n"
     + CALLS}, "theirs/part.py", "return 1", "return 2"),
    ("the first of two blocks that import one name", {"theirs/part.py": F, "theirs/slow.py": F, "theirs/rule.py":
     "FAST = True\nif FAST:\n    from theirs.part import f\nif not FAST:\n    from theirs.slow import f\n" + CALLS},
     "theirs/part.py", "return 1", "return 2"),
    ("what a block imports by *", {"theirs/part.py": F, "theirs/rule.py":
     "try:\n    from theirs.part import *\nexcept ImportError:\n    pass\n" + CALLS},
     "theirs/part.py", "return 1", "return 2"),
    ("one name that two methods import", {"theirs/part.py": F, "theirs/slow.py": F, "theirs/rule.py":
     "class A:\n    def g(self):\n        from theirs.part import f\n        return f(2)\n\n"
     "    def h(self):\n        from theirs.slow import f\n        return f(2)\n"},
     "theirs/part.py", "return 1", "return 2"),
    ("what a class imports as its own", {"theirs/part.py": F, "theirs/rule.py":
     "class A:\n    from theirs.part import f\n"}, "theirs/part.py", "return 1", "return 2"),
    ("a pattern of one", {"theirs/rule.py":
     "class A:\n    def g(self, v):\n        match v:\n            case (x,):\n                return x\n"},
     "theirs/rule.py", "(x,)", "(x)"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("files", "file", "old", "new"), [case[1:] for case in REACHED], ids=[case[0] for case in REACHED]
)
def test_what_a_rule_reaches_in_other_ways(
    files: dict[str, str], file: str, old: str, new: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _write(tmp_path, files)
    monkeypatch.syspath_prepend(str(tmp_path))
    names = frozenset({"theirs.rule.A"})
    before = digest(names, Sources())
    text = (tmp_path / file).read_text()
    assert old in text
    (tmp_path / file).write_text(text.replace(old, new, 1))
    assert digest(names, Sources()) != before


def test_an_editable_package_is_followed_that_only_its_own_finder_knows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "elsewhere"
    _write(home, {"__init__.py": "", "rule.py": "class A:\n    x = 1\n"})

    class Editable:
        @staticmethod
        def find_spec(name: str, path: object = None, target: object = None) -> ModuleSpec | None:
            if name != "theirs":
                return None
            return importlib.util.spec_from_file_location(
                name, home / "__init__.py", submodule_search_locations=[str(home)]
            )

    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path, Editable])
    names = frozenset({"theirs.rule.A"})
    before = digest(names, Sources())
    (home / "rule.py").write_text("class A:\n    x = 2\n")
    assert digest(names, Sources()) != before


def _write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


def test_f_strings_are_one_token_under_every_version() -> None:
    """Python 3.12 splits them; the pieces of such a split, made here, come back as the literal."""
    text = 'x = f"a {b!r:>{c}} d" + "e"\n'
    lines = text.splitlines(keepends=True)
    whole = [token[3] for token in source._joined(tokenize.generate_tokens(iter(lines).__next__), lines)]
    assert 'f"a {b!r:>{c}} d"' in whole
    start, end = (1, text.index('f"')), (1, text.index(" +"))
    kinds = {"FSTRING_START": 901, "FSTRING_END": 902}
    pieces = [
        tokenize.TokenInfo(901, 'f"', start, (1, start[1] + 2), text),
        tokenize.TokenInfo(tokenize.OP, "{", (1, start[1] + 4), (1, start[1] + 5), text),
        tokenize.TokenInfo(902, '"', (1, end[1] - 1), end, text),
    ]
    with pytest.MonkeyPatch.context() as patch:
        for name, number in kinds.items():
            patch.setattr(tokenize, name, number, raising=False)
        assert [token[3] for token in source._joined(pieces, lines)] == ['f"a {b!r:>{c}} d"']


def test_a_letter_of_several_bytes_shifts_nothing() -> None:
    plain = source.read('def f(x):\n    return "a", math.sqrt(x)\nimport math\n', "m", False)
    long = source.read('def f(x):\n    return "α", math.sqrt(x)\nimport math\n', "m", False)
    moved = source.read('def f(x):\n    return "α", root(x)\nfrom math import sqrt as root\n', "m", False)
    assert plain.definitions[0].raw != long.definitions[0].raw == moved.definitions[0].raw


def test_no_file_is_parsed_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What makes it quick: a second run, and a second process, read only what was kept."""
    config = schema.used(compose(["method=ps_clip"]))
    parsed: list[str] = []
    whole = fingerprints.read

    def watched(text: str, name: str, package: bool) -> source.Module:
        parsed.append(name)
        return whole(text, name, package)

    monkeypatch.setattr(fingerprints, "read", watched)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    fingerprints._digest.cache_clear()
    before = fingerprint(config)
    first = len(parsed)
    assert first == len(set(parsed)) > 10
    fingerprints._digest.cache_clear()
    assert fingerprint(config) == before
    assert len(parsed) == first


def test_what_is_kept_gives_the_same_as_what_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    names = frozenset(roots(schema.used(compose(["method=spectral_clip_ema"]))))
    fresh = digest(names, Sources())
    with fingerprints._sources() as first:
        assert digest(names, first) == fresh
    with fingerprints._sources() as second:
        assert second.kept
        assert digest(names, second) == fresh
        assert not second.changed
    (tmp_path / "clipbench/sources.json").write_text("{ half")
    with fingerprints._sources() as third:
        assert digest(names, third) == fresh


def test_the_batched_program_counts_for_its_members_only(here: Path, sources: Sources) -> None:
    members = NAMES | set(fingerprints.TOGETHER)
    before = digest(NAMES, sources), digest(members, sources)
    path = here / "clipbench/training/together/trainer.py"
    text = path.read_text()
    path.write_text(text.replace("self.done += 1", "self.done += 2"))
    try:
        after = digest(NAMES, sources), digest(members, sources)
    finally:
        path.write_text(text)
    assert after[0] == before[0]
    assert after[1] != before[1]
