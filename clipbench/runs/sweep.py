"""Many runs: what is to do before a sweep starts, and what came of it at its end.

The sweep itself is Hydra's (`python -m clipbench.run -m …`). This finds the records that the sweep's runs belong to,
so that a sweep that is started again says how much of it is already done.
"""

from __future__ import annotations

import statistics
import sys
from collections import Counter
from collections.abc import Sequence

from hydra import initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from clipbench.cli.compose import CONFIG_PATH, Compositions, compose_node
from clipbench.config.environment import hidden
from clipbench.errors import ConfigError, RecordError
from clipbench.runs.catalogue import Known, look
from clipbench.runs.progress import duration
from clipbench.runs.record import State
from clipbench.runs.recorder import Outcome
from clipbench.runs.request import Request, request
from clipbench.runs.together import run_together
from clipbench.wording import amount

WORDS = {"absent": "not begun", "running": "unfinished"}


class Sweep:
    """The runs of one multirun command line; `words` are its overrides, those of Hydra's own node too.

    `refused` are the errors of runs that cannot be made. Raises the first where none can, and ConfigError where the
    words make no run at all.
    """

    def __init__(self, words: Sequence[str]) -> None:
        with initialize_config_dir(CONFIG_PATH, version_base="1.3"):
            node = compose_node([word for word in words if not _is_swept(word)])
            self.launcher = node.hydra.launcher
            self.requests, self.refused = requests(node, words)
        if self.refused and not self.requests:
            raise self.refused[0]
        self.done = sum(known.place is not None for known in self.known())

    def known(self) -> list[Known]:
        """What records and collected data say now, run by run."""
        return [look(one) for one in self.requests]

    def to_do(self) -> str:
        """What is to do: runs in all, done, to resume, to do, and about how long that takes."""
        known = self.known()
        left = [one for one, found in zip(self.requests, known, strict=True) if found.place is None]
        resumable = sum((one.folder / "checkpoint.pt").exists() for one in left)
        line = f"sweep: {amount(len(known), 'run')}, {len(known) - len(left)} done, {len(left)} to do"
        line += f" ({resumable} of them begun)" if resumable else ""
        line = f"{line}; {_estimate(left, self.requests, [found.state for found in known])}" if left else line
        if travelled := sum(found.travelled for found in known):
            places = {str(found.place.parent) for found in known if found.place is not None and found.travelled}
            line += f"\nfound: {travelled} of {len(known)} in {', '.join(sorted(places))}"
        if "joblib" in self.launcher.get("_target_", ""):
            line += "\nnote: runs beside each other disturb each other's clocks; "
            line += "compare times by clipbench.calibrate only"
        return line

    def train_together(self) -> None:
        """With together=R, train what can go together; Hydra's jobs then find these runs done, and run the rest.

        Where a batch fails its runs are tried alone, so that each tells of its own error.
        """
        try:
            for outcome in run_together(self.requests):
                print(shown(outcome))
        except (ConfigError, RecordError):
            raise
        except Exception as error:
            why = hidden(f"{type(error).__name__}: {error}").splitlines()[0]
            print(f"together: {why}; the runs go alone", file=sys.stderr)

    def report(self) -> None:
        """Print the number of runs by status, and where the records of the failed ones are."""
        states = [found.state for found in self.known()]
        counts = Counter(WORDS.get(state.status, state.status) for state in states)
        skipped = f" ({self.done} skipped, done before)" if self.done else ""
        print("sweep ended: " + ", ".join(f"{number} {word}" for word, number in sorted(counts.items())) + skipped)
        if logs := str(self.launcher.get("submitit_folder", "")):
            print(f"logs: {logs}")
        sys.stdout.flush()
        for one, state in zip(self.requests, states, strict=True):
            if state.status == "failed":
                where = one.folder / "error.txt"
                print(f"failed: {one.method}: {state.info.get('error')} ({where})", file=sys.stderr)


def shown(outcome: Outcome) -> str:
    """One line: status, steps, seconds and the final metrics."""
    info = outcome.info
    metrics = [
        f"{name.replace('_', ' ')} {value:.4g}"
        for name, value in (info.get("final") or {}).items()
        if value is not None and (name.startswith(("validation_", "test_", "study_")) or name == "train_loss")
    ]
    seconds = (info.get("seconds") or {}).get("train") or 0.0
    status = f"{outcome.status}{' (already done)' * outcome.found}"
    head = f"{status}: {info.get('method')} seed {info.get('seed')}, {amount(str(info.get('steps_done')), 'step')}"
    return f"{head} in {seconds:.1f} train seconds; {', '.join(metrics)}"


def _is_swept(word: str) -> bool:
    return bool(OverridesParser.create().parse_override(word).is_sweep_override())


def requests(node: DictConfig, words: Sequence[str]) -> tuple[list[Request], list[Exception]]:
    """The runs that a multirun with these overrides will start, and the errors of those with bad input."""
    own = [word for word in words if not word.lstrip("+~").startswith("hydra.")]
    places = [word for word in words if word.startswith("hydra.searchpath=")]
    named = {word.partition("=")[0] for word in own}
    params = node.hydra.sweeper.get("params") or {}
    given = [f"{key}={value}" for key, value in params.items() if key not in named]
    parser = OverridesParser.create(GlobalHydra.instance().config_loader())  # which knows what glob() may find
    parsed = parser.parse_overrides(given + own)
    if odd := next((one for one in parsed if one.is_interval_sweep()), None):
        raise ConfigError(f"a sweep must be a,b or choice(…), range(…) or glob(…), got {odd.input_line}")
    if empty := next((one for one in parsed if one.is_sweep_override() and not [*one.sweep_iterator()]), None):
        raise ConfigError(f"{empty.key_or_group} must have a value to run, got {empty.input_line}, which finds none")
    (split,) = BasicSweeper.split_arguments(parsed, None)
    compositions, groups = Compositions(), set(node.hydra.runtime.choices)
    found: list[Request] = []
    refused: list[Exception] = []
    for overrides in split:
        try:
            found.append(request(compositions.of([*places, *overrides], groups)))
        except (ConfigError, HydraException, OmegaConfBaseException) as error:
            refused.append(error)
    return found, refused


def _estimate(left: Sequence[Request], known: Sequence[Request], states: Sequence[State]) -> str:
    """About how long the open runs take, judged by the finished runs of the same method, else of any method."""
    seconds: dict[str, list[float]] = {}
    for one, state in zip(known, states, strict=True):
        wall = (state.info.get("seconds") or {}).get("wall")
        if state.status == "ok" and wall is not None:
            seconds.setdefault(one.method, []).append(wall)
    if not seconds:
        return "no finished run yet to judge the time by"
    anyone = statistics.mean(value for values in seconds.values() for value in values)
    total = sum(statistics.mean(seconds.get(one.method, [anyone])) for one in left)
    finished = sum(len(values) for values in seconds.values())
    return f"about {duration(total)}, judged by {amount(finished, 'finished run')}"
