"""The command `python -m clipbench.leaderboard`: every method on the embedded suite, equally tuned, as one table."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from clipbench.cli.arguments import overrides
from clipbench.cli.command import command
from clipbench.cli.compose import CONFIG_PATH
from clipbench.cli.outside import methods as known_methods
from clipbench.errors import ConfigError

if TYPE_CHECKING:
    from clipbench.tuning.plan import Plan

SIZES = ("smoke", "cpu")
HELP = """\
usage: python -m clipbench.leaderboard [size=cpu] [tasks=a,b] [methods=a,b] [key=value …]

Tune every method on each task of conf/leaderboard.yaml with the same number of trials, run the winners on fresh seeds,
and write the table and the figure of all tasks. What is finished is found, in results/runs or results/data, and what
was interrupted goes on: adding a method costs that method's runs alone. About four hours on two cores for everything,
half an hour for the two MLP tasks.

  size=cpu                  cpu, or smoke: seconds, for tests
  tasks=leaderboard_mlp     default: all of conf/leaderboard.yaml
  methods=sgd,my_rule       default: as conf/leaderboard.yaml says; sgd always takes part, all others are measured by it
  --config-dir DIR          a folder of methods of your own
  --allow PACKAGE           a package of your own that their files may name

Everything else is an option of the runs, as on the command line of clipbench.run (data.root=/data).

examples:
  python -m clipbench.leaderboard size=smoke tasks=leaderboard_mlp
  python -m clipbench.leaderboard tasks=leaderboard_mlp,leaderboard_pareto methods=my_rule --config-dir my_configs
"""


def main(arguments: Sequence[str]) -> None:
    """Tune, run and collect task after task, then write the leaderboard. Raises ConfigError for bad input."""
    if {"-h", "--help"} & set(arguments):
        print(HELP, end="")
        return
    words = overrides(arguments, "leaderboard", ("size", "tasks", "methods"))
    own = dict(word.removeprefix("leaderboard.").split("=", 1) for word in words if word.startswith("leaderboard."))
    rest = [word for word in words if not word.startswith("leaderboard.")]
    size = own.get("size", "cpu")
    if size not in SIZES:
        raise ConfigError(f"size must be {' or '.join(SIZES)}, got {size}")
    for word in rest:
        if word.partition("=")[0] in ("experiment", "method", "seed"):
            raise ConfigError(f"{word} is set by clipbench.leaderboard (tasks=… and methods=… say what runs)")
    started = time.monotonic()

    from hydra import initialize_config_dir

    from clipbench.analysis.leaderboard import chosen, listed
    from clipbench.tuning import plan

    wanted = [name for name in own.get("methods", "").strip("[]").split(",") if name]
    with initialize_config_dir(CONFIG_PATH, version_base="1.3"):
        plans = []  # all of them first: a word that does not fit the last task is told before the first is run
        for task in chosen(listed(), [name for name in own.get("tasks", "").strip("[]").split(",") if name]):
            methods = wanted or (known_methods(Path(CONFIG_PATH)) if task.methods == "all" else [])
            if methods:
                methods = list(dict.fromkeys(["sgd", *methods]))
            named = [f"tuning.methods=[{','.join(methods)}]"] if methods else []
            # the command line's own words come last: they win
            plans.append(plan([f"experiment={task.name}/{size}", f"together={task.together}", *named, *rest]))
        missed = _work(plans)
    _write(plans[0].results, size)
    print(f"{time.monotonic() - started:.0f} s", flush=True)
    if missed is not None:
        raise missed


def _work(plans: Sequence[Plan]) -> ConfigError | None:
    """Tune, run and collect every task. One that cannot run, as its data are missing, is told and leaves the others
    alone; the first such error is returned.
    """
    from clipbench.analysis.collect import bring, collect
    from clipbench.tuning import Worker, summary

    missed = None
    for ready in plans:
        try:
            worker = Worker(ready, lambda line: print(line, flush=True))
            print("\n".join(summary(worker.go())), flush=True)
        except ConfigError as error:
            missed = missed or error
            print(f"{ready.experiment} is left out: {str(error).splitlines()[0]}", file=sys.stderr, flush=True)
            continue
        bring(ready.results, ready.experiment)  # before collecting, which asks for an experiment with runs
        collect(ready.results, experiments=[ready.experiment])
    return missed


def _write(results: Path, size: str) -> None:
    """Table and figure of all that is collected; says so where there is nothing to show."""
    from clipbench.analysis.leaderboard_page import write

    written = write(results, size)
    if not written:
        print("no table: no task has finished final runs of tuned sgd", file=sys.stderr)
    for path in written:
        print(path)


if __name__ == "__main__":
    command(lambda: main(sys.argv[1:]))
