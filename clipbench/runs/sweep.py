"""Many runs: what is to do before a sweep starts, and what came of it at its end.

The sweep itself is Hydra's (`python -m clipbench.run -m …`); this is its callback. It finds the records the
sweep's jobs belong to, so that a sweep that is started again says how much of it is already done.
"""

from __future__ import annotations

import copy
import statistics
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from clipbench.cli.compose import compose_node, resolve
from clipbench.config import schema
from clipbench.errors import ConfigError
from clipbench.runs import provenance
from clipbench.runs.execute import Outcome, locate, settled
from clipbench.runs.record import Record, State


class Job(NamedTuple):
    """One run of a sweep: where its record lies, its method, its options, its code's fingerprint."""

    folder: Path
    method: str
    options: schema.Options
    code: str


def describe(outcome: Outcome) -> str:
    """One line: status, steps, seconds and the final metrics."""
    info = outcome.info
    shown = [
        f"{name.replace('_', ' ')} {value:.4g}"
        for name, value in info.get("final", {}).items()
        if name.startswith(("validation_", "test_", "study_")) or name == "train_loss"
    ]
    seconds = info.get("seconds", {}).get("train", 0.0)
    status = f"{outcome.status}{' (already done)' * outcome.found}"
    head = f"{status}: {info.get('method')} seed {info.get('seed')}, {info.get('steps_done')} steps"
    return f"{head} in {seconds:.1f} train seconds; {', '.join(shown)}"


def jobs(config: DictConfig) -> list[Job]:
    """The runs that a multirun with this Hydra config will start; ones with bad input are left to their own error."""
    given = [f"{key}={value}" for key, value in (config.hydra.sweeper.get("params") or {}).items()]
    places = [word for word in config.hydra.overrides.hydra if word.startswith("hydra.searchpath=")]
    parsed = OverridesParser.create().parse_overrides(given + list(config.hydra.overrides.task))
    (split,) = BasicSweeper.split_arguments(parsed, None)
    bases: dict[tuple[str, ...], DictConfig] = {}
    found = []
    for overrides in split:
        try:
            plain = _compose([*places, *overrides], set(config.hydra.runtime.choices), bases)
            options = schema.check(plain)
            code = provenance.fingerprint(provenance.foreign_targets(plain))
            studied = plain["study"].get("name") if "_target_" in plain["study"] else None
            found.append(Job(locate(plain, options), str(studied or plain["method"]["name"]), options, code))
        except (ConfigError, HydraException, OmegaConfBaseException):
            continue
    return found


def _compose(overrides: Sequence[str], groups: set[str], bases: dict[tuple[str, ...], DictConfig]) -> dict[str, Any]:
    """The resolved config of one job; what only changes values is laid over a composition made once per choice."""
    parsed = OverridesParser.create().parse_overrides(list(overrides))

    def is_value(override: Override) -> bool:
        composed = override.key_or_group in groups or override.key_or_group.startswith("hydra.")
        return override.type is OverrideType.CHANGE and not composed and not override.package

    values = [override for override in parsed if is_value(override)]
    choice = tuple(text for text, override in zip(overrides, parsed, strict=True) if not is_value(override))
    if choice not in bases:
        bases[choice] = compose_node(choice)
    config = copy.deepcopy(bases[choice])
    for override in values:
        if OmegaConf.select(config, override.key_or_group, default=config) is config:
            raise ConfigError(f"{override.key_or_group} is not an option")
        OmegaConf.update(config, override.key_or_group, override.value())
    return resolve(config, config.hydra.runtime.choices)


class SweepReport(Callback):  # type: ignore[misc]  # Hydra's class has no types
    """Hydra callback: says at a sweep's start what is to do and for how long, and at its end what came of it."""

    def __init__(self) -> None:
        self.jobs: list[Job] = []
        self.done: set[Path] = set()
        self.logs = ""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Print how many runs there are, how many are done, and an estimate from the finished ones."""
        global _under_way
        self.jobs = jobs(config)
        code = provenance.fingerprint()
        self.done = {job.folder for job in self.jobs if settled(Record(job.folder).state(), job.options, code)}
        launcher = config.hydra.launcher
        self.logs = str(launcher.get("submitit_folder", ""))
        _under_way = self
        print(plan(self.jobs), flush=True)
        if "joblib" in launcher.get("_target_", ""):
            print("note: runs beside each other disturb each other's clocks; compare times by clipbench.calibrate only")

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Print what came of the sweep. Hydra does not call this where a job has failed; `close` is for that."""
        close()

    def report(self) -> None:
        """Print the number of runs by status, and where the records of the failed ones are."""
        states = [(job, Record(job.folder).state()) for job in self.jobs]
        counts = Counter(WORDS.get(state.status, state.status) for _, state in states)
        skipped = f" ({len(self.done)} skipped, done before)" if self.done else ""
        print("sweep ended: " + ", ".join(f"{number} {word}" for word, number in sorted(counts.items())) + skipped)
        if self.logs:
            print(f"logs: {self.logs}")
        sys.stdout.flush()
        for job, state in states:
            if state.status == "failed":
                print(f"failed: {job.method}: {state.info.get('error')} ({job.folder / 'error.txt'})", file=sys.stderr)


_under_way: SweepReport | None = None
WORDS = {"absent": "not begun", "running": "unfinished"}


def close() -> None:
    """Report on the sweep that this process has begun, if there is one that was not reported on yet."""
    global _under_way
    if _under_way is not None:
        ended, _under_way = _under_way, None
        ended.report()


def plan(found: Sequence[Job]) -> str:
    """One line: runs in all, done, to resume, to do, and about how long that takes."""
    states = [Record(job.folder).state() for job in found]
    done = [settled(state, job.options, job.code) for job, state in zip(found, states, strict=True)]
    open_jobs = [job for job, finished in zip(found, done, strict=True) if not finished]
    resumable = sum((job.folder / "checkpoint.pt").exists() for job in open_jobs)
    line = f"sweep: {len(found)} runs, {sum(done)} done, {len(open_jobs)} to do"
    line += f" ({resumable} of them begun)" if resumable else ""
    return f"{line}; {_estimate(open_jobs, found, states)}" if open_jobs else line


def _estimate(open_jobs: Sequence[Job], found: Sequence[Job], states: Sequence[State]) -> str:
    """About how long the open jobs take, judged by the finished runs of the same method, else of any method."""
    seconds: dict[str, list[float]] = {}
    for job, state in zip(found, states, strict=True):
        if state.status == "ok":
            seconds.setdefault(job.method, []).append(state.info["seconds"]["wall"])
    if not seconds:
        return "no finished run yet to judge the time by"
    anyone = statistics.mean(value for values in seconds.values() for value in values)
    total = sum(statistics.mean(seconds.get(job.method, [anyone])) for job in open_jobs)
    finished = sum(len(values) for values in seconds.values())
    shown = f"{total:.0f} s" if total < 120 else f"{total / 60:.0f} min" if total < 7200 else f"{total / 3600:.1f} h"
    return f"about {shown}, judged by {finished} finished runs"
