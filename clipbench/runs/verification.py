"""Whether code still gives the numbers that it gave: old code beside new, and a published run beside an own one."""

from __future__ import annotations

import contextlib
import json
import math
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from clipbench.config import schema
from clipbench.errors import ConfigError
from clipbench.runs import short_run
from clipbench.runs.execute import execute
from clipbench.wording import amount

PACKAGE = Path(__file__).parents[1]


class ShortRun(NamedTuple):
    """What a short run left: its code's fingerprint, its status, number of rows, their digest, and its finals."""

    fingerprint: str
    status: str
    rows: int
    digest: str
    finals: dict[str, str]


class Comparison(NamedTuple):
    """One method of an experiment under old and new code; None where the old code cannot run it."""

    experiment: str
    method: str
    together: bool  # whether as members of one program
    old: ShortRun | None
    new: ShortRun

    @property
    def equal(self) -> bool:
        """Whether both left the same rows, bit for bit, and all that is final by the new code was so by the old.

        Old records may hold more: a metric that is no longer kept makes no number another.
        """
        if self.old is None or self.old[1:4] != self.new[1:4]:
            return False
        return all(self.old.finals.get(name) == value for name, value in self.new.finals.items())


def compare(commit: str, cases: Sequence[tuple[str, str, bool]], say: Any = print) -> list[Comparison]:
    """The short runs of (experiment, method, whether together) under the code of `commit` and under this one.

    Raises ConfigError where `commit` is none of this checkout's.
    """
    with _checkout(commit) as old:
        words = [
            [f"experiment={experiment}", f"method={method}", *([short_run.BATCHED] if together else [])]
            for experiment, method, together in cases
        ]
        say(
            f"{amount(len(cases), 'short run')} of {short_run.STEPS} steps, undisturbed and resumed, "
            f"under {commit} and this code"
        )
        before, after = _short_runs(old, words), _short_runs(PACKAGE.parent, words)
    found = []
    for (experiment, method, together), was, now in zip(cases, before, after, strict=True):
        if isinstance(now, str):
            raise ConfigError(f"experiment must be one that this code can run, got {experiment} with {method} ({now})")
        found.append(Comparison(experiment, method, together, None if isinstance(was, str) else was, now))
    return found


@contextlib.contextmanager
def _checkout(commit: str) -> Iterator[Path]:
    """A worktree of `commit` in a folder that is removed afterwards."""
    home = PACKAGE.parent
    with tempfile.TemporaryDirectory() as folder:
        place = str(Path(folder, "code"))
        made = subprocess.run(
            ["git", "worktree", "add", "--detach", place, commit], cwd=home, capture_output=True, text=True, check=False
        )
        if made.returncode != 0:
            why = (made.stderr.strip().splitlines() or ["git is not there"])[-1]
            raise ConfigError(f"--equal must be a commit of this checkout, got {commit} ({why})")
        try:
            yield Path(place)
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", place], cwd=home, capture_output=True, check=False)


def _short_runs(tree: Path, cases: Sequence[Sequence[str]]) -> list[ShortRun | str]:
    """The short runs of one tree's code, in a process of its own; a text where one cannot be made."""
    done = subprocess.run(
        [sys.executable, "-c", Path(short_run.__file__).read_text(encoding="utf-8")],
        input=json.dumps([list(case) for case in cases]), cwd=tree, env=os.environ | {"PYTHONPATH": str(tree)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode != 0:
        raise RuntimeError(f"the code in {tree} cannot be run: {(done.stderr.strip().splitlines() or ['?'])[-1]}")
    return [one if isinstance(one, str) else ShortRun(*one) for one in json.loads(done.stdout.splitlines()[-1])]


def resolved(commit: str) -> str:
    """The commit's full name."""
    found = subprocess.run(
        ["git", "rev-parse", "--verify", f"{commit}^{{commit}}"], cwd=PACKAGE, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    if found.returncode != 0:
        raise ConfigError(f"--equal must be a commit of this checkout, got {commit}")
    return found.stdout.strip()


class Repeated(NamedTuple):
    """A published run and an own repetition: info of both."""

    published: dict[str, Any]
    own: dict[str, Any]

    def lines(self) -> list[str]:
        """Every final metric that is no time, published and own, and whether they are equal."""
        found = []
        for name, value in self.published["final"].items():
            interval = name.startswith("train_") and name not in ("train_loss", "train_share_clipped")
            if interval or name.endswith(("_seconds", "_per_second")):
                continue  # a time, or what older records hold of the last interval of logging alone
            label = name.replace("_", " ")
            if name not in self.own["final"]:
                found.append(f"  {label}: published {value:.6g}, here there is none")
                continue
            own = self.own["final"][name]
            same = own == value or (math.isnan(own) and math.isnan(value))
            equal = "the same to the last bit" if same else f"differs by {abs(own - value):.2g}"
            found.append(f"  {label}: published {value:.6g}, here {own:.6g} ({equal})")
        return found


def choose(runs: Sequence[dict[str, Any]], sample: int, method: str | None, seed: int | None) -> list[dict[str, Any]]:
    """`sample` of the published ok runs, drawn at random among those of a method and a seed. ValueError for none."""
    fits = [
        run for run in runs
        if run["status"] == "ok" and run["role"] != "tune" and method in (None, run["method"])
        and seed in (None, run["seed"])
    ]  # fmt: skip
    if not fits:
        wanted = ", ".join(f"{k} {v}" for k, v in (("method", method), ("seed", seed)) if v is not None) or "any"
        raise ConfigError(f"experiment must have published runs that ended ok ({wanted}), got none")
    return random.Random().sample(fits, min(sample, len(fits)))


def repeat(published: Mapping[str, Any], base: Mapping[str, Any], results: Path) -> Repeated:
    """Run a published run's config anew, with its record in `results`; `base` gives what was not published of it."""
    recorded = published["config"]
    config = {**base, **{key: value for key, value in recorded.items() if key in base}}
    config["data"] = {**base["data"], **recorded.get("data", {})}
    config["paths"] = {"results": str(results), "tuned": None}
    for group in schema.GROUPS:
        config.setdefault(group, base[group])
    outcome = execute(config, lambda line: None)
    return Repeated(dict(published), outcome.info)
