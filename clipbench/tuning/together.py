"""Trials and final runs that train together: ahead of the workers' own round, which then finds them done.

A sequence names every trial's settings before the first has ended, so no trial waits for another's record. Workers
share the batches by the locks of the members' records: what another worker trains is left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from clipbench.config.environment import hidden
from clipbench.errors import ConfigError, RecordError
from clipbench.runs.recorder import Outcome, Say
from clipbench.runs.request import request
from clipbench.runs.together import run_together
from clipbench.tuning.finals import Finals
from clipbench.tuning.plan import Plan
from clipbench.tuning.study import Study


def trials(studies: Sequence[Study], plan: Plan, say: Say) -> list[Outcome]:
    """Train the open trials of all methods in batches."""
    tuning = plan.options.tuning
    if plan.options.together < 2:
        return []
    if tuning.sampler != "sobol" or tuning.pruner != "none":
        which = f"sampler={tuning.sampler}" if tuning.sampler != "sobol" else f"pruner={tuning.pruner}"
        say(f"together: trials go alone: tuning.{which} looks at the trials before")
        return []
    return _train([study.config(index) for study in studies for index in study.leases.open()], say)


def finals(jobs: Sequence[Finals], plan: Plan, say: Say) -> list[Outcome]:
    """Train the winners' open runs in batches."""
    if plan.options.together < 2:
        return []
    return _train([job.config(job.seeds[index]) for job in jobs for index in job.leases.open()], say)


def _train(configs: Sequence[dict[str, Any]], say: Say) -> list[Outcome]:
    """A batch that fails leaves failed records, which the worker's round then tries alone."""
    requests = {wanted.run_id: wanted for wanted in map(request, configs)}  # methods share their baseline's trials
    try:
        return run_together(list(requests.values()), say)
    except (ConfigError, RecordError):
        raise
    except Exception as error:
        why = hidden(f"{type(error).__name__}: {error}").splitlines()[0]
        say(f"together: {why}; its runs go alone")
        return []
