"""The command `python -m clipbench.run`: compose, instantiate, call. Nothing else."""

from __future__ import annotations

import sys

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from clipbench.cli.command import command, condense
from clipbench.cli.compose import CONFIG_PATH, resolve
from clipbench.errors import JobError


@hydra.main(version_base="1.3", config_path=CONFIG_PATH, config_name="config")
def job(config: DictConfig) -> str:
    """One run; prints status, final metrics and, on the last line, the folder of the record."""
    from clipbench.runs.execute import execute
    from clipbench.runs.record import RunLocked
    from clipbench.runs.sweep import describe

    many = HydraConfig.get().mode is RunMode.MULTIRUN
    try:
        outcome = execute(resolve(config))
    except RunLocked as locked:
        if not many:
            raise JobError(locked) from locked
        print(f"left to another process: {locked}", flush=True)
        return "locked"
    except Exception as error:
        if not many:
            raise JobError(error) from error
        print(f"clipbench: {condense(error) or repr(error)}", file=sys.stderr, flush=True)
        raise  # the sweep goes on; Hydra raises this again at its end
    print(describe(outcome))
    print(outcome.folder, flush=True)
    return outcome.status


def main() -> None:
    """The job, or the sweep, whose report comes at its end however it ends."""
    try:
        job()
    finally:
        if "clipbench.runs.sweep" in sys.modules:
            sys.modules["clipbench.runs.sweep"].close()


if __name__ == "__main__":
    command(main)
