"""The command `python -m clipbench.tune`: equal trials for every method, then the winners on fresh seeds."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence

from clipbench.cli.arguments import overrides
from clipbench.cli.command import command
from clipbench.cli.compose import CONFIG_PATH

WORDS = ("trials", "methods", "metric", "protocol", "sampler", "pruner", "final_seeds", "storage")
HELP = """\
usage: python -m clipbench.tune experiment=<name>/<size> [trials=N] [methods=a,b] [key=value …]

Tune every method with the same number of trials of the same length, select on the validation split, write the
selected settings to conf/tuned_settings (outside a checkout: <results>/tuned), run them on fresh seeds (role final).
Trial k of every method has the same learning rate. The first quarter of a clipped method's trials are its baseline's
(threshold infinity; they are found, not run again), the thresholds of the rest clip 2 to 98 % at first, as a short
reference run measures. A winner that clips under 1 % of steps, samples or layers IS its baseline. Killed at any time,
the same command goes on where it was; started several times, it shares the work.

  trials=16                 trials per method
  methods=sgd,ps_clip       default: the methods of the experiment's sweep
  metric=validation_loss    its last value selects: a loss is minimised, anything else maximised
  protocol=ours             ours: the ranges under tuning.ours; paper: the paper's ranges and numbers of trials
  sampler=sobol             sobol: a fixed low-discrepancy sequence; tpe: Optuna's TPE after ten trials of it
  pruner=none               none; median: stop what is worse than the median (favours fast starters)
  final_seeds=0,1,2,3,4     seeds of the winners' runs
  --config-dir DIR          a folder of methods and experiments of your own
  --allow PACKAGE           a package of your own that their files may name
  storage=URL               an Optuna database for workers on several machines; default: SQLite in <results>/tune

Everything else is an option of the runs, as on the command line of clipbench.run (steps=500, data.root=/data);
search ranges are options too: tuning.ours.shared.optimizer.lr.low=0.01.

examples:
  python -m clipbench.tune experiment=heavy_tailed_mlp/smoke trials=4
  python -m clipbench.tune experiment=ps_clip_alexnet_cifar100/cpu trials=16 epochs=2
"""


def main(arguments: Sequence[str]) -> None:
    """Work on the tuning until nothing is left to do. Raises ConfigError and RecordError for what cannot be done."""
    if not arguments or {"-h", "--help"} & set(arguments):
        print(HELP, end="")
        return
    words = overrides(arguments, "tuning", WORDS)
    started = time.monotonic()

    from hydra import initialize_config_dir

    from clipbench.tuning import Worker, plan, summary

    with initialize_config_dir(CONFIG_PATH, version_base="1.3"):
        worker = Worker(plan(words), lambda line: print(line, flush=True))
        results = worker.go()
    print("\n".join(summary(results)))
    print(f"{time.monotonic() - started:.0f} s; python -m clipbench.report all makes the tables and figures")
    print(worker.plan.tuned, flush=True)


if __name__ == "__main__":
    command(lambda: main(sys.argv[1:]))
