"""The command `python -m clipbench.calibrate`: the step time of all methods of an experiment, side by side."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from clipbench.cli.arguments import overrides
from clipbench.cli.command import WAITING, command
from clipbench.cli.compose import CONFIG_PATH, must_train
from clipbench.errors import ConfigError

BASELINE = "sgd"
DISTURBED = 0.2  # interquartile range over median above which a machine is called disturbed; our choice
WORDS = ("methods", "rounds", "train_steps", "settle_steps")
HELP = """\
usage: python -m clipbench.calibrate experiment=<name>/<size> [rounds=N] [methods=a,b] [key=value …]

Measure the time of a training step of every method, interleaved in one process: every round does the same number of
steps of each method, in random order. Medians, ratio to plain SGD with a bootstrap interval; set-up time and peak
memory apart, in a fresh process for each method. The weights are those after some plain training, the thresholds
those in use (tuned ones where there are any; tuned=none switches them off). Seconds of runs on a shared machine
cannot be compared; figures over time use steps × these step times.

  rounds=30          interleaved measurements of each method
  methods=a,b        default: the methods of the experiment's sweep; sgd is always among them
  train_steps=200    plain training before; default: half a run, at most 200
  settle_steps=20    steps of each method after that, for thresholds that follow the gradients
  --config-dir DIR   a folder of methods and experiments of your own
  --allow PACKAGE    a package of your own that their files may name

Everything else is an option of the runs, as on the command line of clipbench.run. The rows go to
<results>/data/calibration.parquet, one set for each experiment, device and number of threads.

example:
  python -m clipbench.calibrate experiment=ps_clip_alexnet_cifar100/cpu rounds=40
"""


def configs(words: Sequence[str]) -> tuple[dict[str, dict[str, Any]], dict[str, bool]]:
    """Method → resolved config, and whether tuned settings are in it. Raises ConfigError for bad input."""
    from clipbench.cli.compose import compose, compose_node, resolve
    from clipbench.config.schema import check
    from clipbench.tuning.plan import swept_methods

    if any(word.partition("=")[0] == "method" for word in words):
        raise ConfigError("method is chosen by methods=a,b for clipbench.calibrate")
    node = compose_node(words)
    methods = check(resolve(node, node.hydra.runtime.choices)).calibration.methods or swept_methods(node)
    found, tuned = {}, {}
    for method in dict.fromkeys([BASELINE, *methods]):
        found[method] = compose([*words, f"method={method}"])
        check(found[method])
        tuned[method] = found[method]["tuned"] != "none"
    return found, tuned


def main(arguments: Sequence[str]) -> None:
    """Measure, print the table, store the rows. Raises ConfigError and RecordError for what cannot be done."""
    if not arguments or {"-h", "--help"} & set(arguments):
        print(HELP, end="")
        return
    words = overrides(arguments, "calibration", WORDS)

    from hydra import initialize_config_dir

    with initialize_config_dir(CONFIG_PATH, version_base="1.3"):
        found, tuned = configs(words)
    must_train(found[BASELINE])
    results = Path(found[BASELINE]["paths"]["results"])

    from clipbench.config.schema import canonical, check, used
    from clipbench.runs.archive import stem
    from clipbench.runs.files import atomic_text
    from clipbench.runs.fingerprint import fingerprint
    from clipbench.timing.footprint import footprint
    from clipbench.timing.session import session_of
    from clipbench.timing.table import markdown, rows, store, undisturbed
    from clipbench.timing.work import work

    def warn(line: str) -> None:
        print(f"warning: {line}", file=sys.stderr, flush=True)

    with undisturbed(results):
        session = session_of(found, BASELINE)
        footprints = {method: footprint(config) for method, config in found.items()}
        codes = {method: fingerprint(config) for method, config in found.items()}
        works = {method: work(canonical(used(config), check(config))) for method, config in found.items()}
        frame = rows(session, footprints, tuned, codes, works)
    text = markdown(frame, BASELINE)
    print(text, end="", flush=True)
    chosen = {name: os.environ[name] for name in WAITING if name in os.environ}
    if chosen:
        warn(f"threads wait as {chosen} says, which changes step times with more than one thread")
    for line in [*session.notes, *disturbed(frame)]:
        warn(line)
    store(results / "data" / "calibration.parquet", frame, warn)
    page = results / "tables" / f"{stem(session.setup.options.experiment)}__calibration.md"
    page.parent.mkdir(parents=True, exist_ok=True)
    atomic_text(page, text)
    print(results / "data" / "calibration.parquet")


def disturbed(frame: Any) -> list[str]:
    """A warning where the rounds of a method spread too widely for a quiet machine."""
    worst = frame.loc[frame["spread"].idxmax()]
    if worst["spread"] <= DISTURBED:
        return []
    return [
        f"the machine is disturbed: the middle half of {worst['method']}'s rounds spreads by {worst['spread']:.0%} "
        f"of its median (over {DISTURBED:.0%}); ratios hold within their intervals, seconds hardly: use more rounds"
    ]


if __name__ == "__main__":
    command(lambda: main(sys.argv[1:]), passive=False)
