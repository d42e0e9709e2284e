"""The command `python -m clipbench.run`: compose, instantiate, call. Nothing else."""

from __future__ import annotations

import hydra
from omegaconf import DictConfig

from clipbench.command import CONFIG_PATH, command
from clipbench.compose import resolve


@hydra.main(version_base="1.3", config_path=CONFIG_PATH, config_name="config")
def job(config: DictConfig) -> str:
    """One run; prints status, final metrics and, on the last line, the folder of the record."""
    from clipbench.execute import execute
    from clipbench.sweep import describe

    outcome = execute(resolve(config))
    print(describe(outcome))
    print(outcome.folder, flush=True)
    return outcome.status


if __name__ == "__main__":
    command(job)
