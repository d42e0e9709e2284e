"""The command `python -m clipbench.leaderboard`: every method on the embedded suite, equally tuned, as one table."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path

from clipbench.cli.arguments import overrides
from clipbench.cli.command import command
from clipbench.cli.compose import CONFIG_PATH
from clipbench.cli.outside import methods as known_methods
from clipbench.errors import ConfigError

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

    from clipbench.analysis.collect import collect
    from clipbench.analysis.leaderboard import chosen, listed
    from clipbench.analysis.leaderboard_page import write
    from clipbench.tuning import Worker, plan, summary

    wanted = [name for name in own.get("methods", "").strip("[]").split(",") if name]
    with initialize_config_dir(CONFIG_PATH, version_base="1.3"):
        for task in chosen(listed(), [name for name in own.get("tasks", "").strip("[]").split(",") if name]):
            methods = wanted or (known_methods(Path(CONFIG_PATH)) if task.methods == "all" else [])
            if methods:
                methods = list(dict.fromkeys(["sgd", *methods]))
            named = [f"tuning.methods=[{','.join(methods)}]"] if methods else []
            # the command line's own words come last: they win
            ready = plan([f"experiment={task.name}/{size}", f"together={task.together}", *named, *rest])
            worker = Worker(ready, lambda line: print(line, flush=True))
            print("\n".join(summary(worker.go())))
            collect(ready.results, experiments=[ready.experiment])
    written = write(ready.results, size)
    print(f"{time.monotonic() - started:.0f} s")
    for path in written:
        print(path)


if __name__ == "__main__":
    command(lambda: main(sys.argv[1:]))
