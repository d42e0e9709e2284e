"""The command `python -m clipbench.run`: one run, or with -m a sweep. Compose, instantiate, call; nothing else."""

from __future__ import annotations

import sys

from clipbench.extras import need

need("hydra", "omegaconf")

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from clipbench.cli.arguments import at_home, flags_first
from clipbench.cli.command import command, condense
from clipbench.cli.compose import CONFIG_PATH, resolve
from clipbench.cli.guard import guard
from clipbench.cli.outside import search, taken
from clipbench.config.environment import hidden
from clipbench.errors import JobError, RunLocked
from clipbench.wording import amount


@hydra.main(version_base="1.3", config_path=CONFIG_PATH, config_name="config")
def job(config: DictConfig) -> str:
    """One run; prints status, final metrics and, on the last line, the folder of the record."""
    from clipbench.runs.execute import execute
    from clipbench.runs.sweep import shown

    many = HydraConfig.get().mode is RunMode.MULTIRUN
    try:
        outcome = execute(resolve(config, say=print))
    except RunLocked as locked:
        if not many:
            raise JobError(locked) from locked
        print(f"left to another process: {locked}", flush=True)
        return "locked"
    except Exception as error:
        if not many:
            raise JobError(error) from error
        print(f"clipbench: {condense(error) or hidden(repr(error))}", file=sys.stderr, flush=True)
        raise  # the sweep goes on; Hydra raises this again at its end
    print(shown(outcome))
    print(outcome.folder, flush=True)
    return outcome.status


def main() -> None:
    """The job, or the sweep between what it has to do and its report, which comes however the sweep ends."""
    sys.argv[1:] = [*flags_first(taken(at_home(sys.argv[1:])), get_args_parser()), *search()]
    words = get_args_parser().parse_args()
    guard(words.overrides)
    if not words.multirun or words.cfg or words.info or words.help or words.hydra_help:
        job()
        return

    from clipbench.runs.sweep import Sweep

    sweep = Sweep(words.overrides)
    print(sweep.to_do(), flush=True)
    if sweep.refused:
        first = condense(sweep.refused[0]) or hidden(repr(sweep.refused[0]))
        print(f"clipbench: {amount(len(sweep.refused), 'run')} cannot be made: {first}", file=sys.stderr, flush=True)
    try:
        # Where all were found Hydra would only walk through them; what cannot be made ends in its error.
        if sweep.done < len(sweep.requests) or sweep.refused:
            sweep.train_together()
            job()
    finally:
        sweep.report()


if __name__ == "__main__":
    command(main)
